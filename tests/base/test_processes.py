import gc
from collections.abc import Iterator

import pytest

from semiseg.base.processes import quick_imports


@pytest.fixture(autouse=True)
def not_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_garbage_is_looked_for_again_after_imports_but_not_among_them() -> None:
    imported = []
    with quick_imports():
        assert not gc.isenabled()
        imported.append([imported])
    assert gc.isenabled()
    assert all(each is not imported for each in gc.get_objects())
    later = [imported]
    assert any(each is later for each in gc.get_objects())


def test_an_import_that_fails_leaves_the_search_for_garbage_on() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        raise ModuleNotFoundError
    assert gc.isenabled()
