"""The lists of labelled images that authors published: where each file lies, and its sha256.

Lists of one size share what chance gives, within a family and between families, except:

- dcc: ST++ publishes its lists of 662, 1,323 and 2,645 (VOC) and of 372 and 744 (Cityscapes) as its own, and
  u2pl's 372 of Cityscapes are its first list. Its smaller lists are no parts of the larger ones.
- cmb: lists 1 and 2 label the same 212 images in another order; they share 223 of 530 and 336 of 1,323, where
  chance gives 27 and 165. Lists 0 and 1, and 0 and 2, share what chance gives.
- classic: the 1,464 are VOC's own training list and hold the smaller lists. These are no parts of each other:
  9 of the 92 are among the 183, 42 of the 183 among the 366, 188 of the 366 among the 732.
- cps: a larger list holds the smaller ones.
- u2pl: its lists do not hold each other; of the 2,646, 1,978 are among the 5,291.
- stpp: the first list of 92 is that of classic; its three lists share 4 to 8 images.
"""
# ruff: noqa: E501

from collections.abc import Mapping
from dataclasses import dataclass

GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class File:
    """A published file, and how to recognise it."""

    path: str  # below its family's address
    sha256: str  # hex

    @property
    def label(self) -> str:
        """Path and digest, for the head of a list."""
        return f"{self.path} {self.sha256}"


@dataclass(frozen=True)
class Family:
    """Lists that authors published together."""

    address: str  # a folder at a commit
    lists: Mapping[tuple[str, int, int], File]  # by the dataset's source, labelled images, and seed
    names: File | None = None  # the list that these permute, if they are permutations


def _table(rows: str) -> dict[tuple[str, int, int], File]:
    """Read lines of source, labelled images, seed, path and sha256."""
    cells = (row.split() for row in rows.strip().splitlines())
    return {
        (source, int(count), int(seed)): File(path, sha256) for source, count, seed, path, sha256 in cells
    }


FAMILIES = {
    # Lai et al., CVPR 2021
    "dcc": Family(
        f"{GITHUB}/dvlab-research/Context-Aware-Consistency/4fdec7af8ad22eaabbf852727f2d824b66069999/dataloaders",
        _table("""
            voc          662  0  voc_splits0/662_train_supervised.txt   501eb8d7e7e20f742f1dd8ec408adf14cd21ac0ff6fa0bb249114185de20bae4
            voc         1323  0  voc_splits0/1323_train_supervised.txt  54b77649df4d7b5693026ebbc9b9c9019620d9aa8e75044a30d5d194fe858ccc
            voc         2645  0  voc_splits0/2645_train_supervised.txt  5a40685adcb651322fafb89ac18ce27f2c177bb066a980ea20992d4c9f6de24d
            voc          662  1  voc_splits1/662_train_supervised.txt   122d604fc389c8c402ed6b06d827cd8036557345511be3796a8824910ac14b98
            voc         1323  1  voc_splits1/1323_train_supervised.txt  3eaa2aac366e46e3b465b084b677bce67c963db18027cbd1ae768cf3db7b0670
            voc         2645  1  voc_splits1/2645_train_supervised.txt  286cc892256514a714e7c4676143217e0c24cbcea14fc0a34304de861f99330d
            voc          662  2  voc_splits2/662_train_supervised.txt   bd25003c91e8a58b19da261286ae9b1b9b96b38eac2347ed0d52d9a08c3d6f94
            voc         1323  2  voc_splits2/1323_train_supervised.txt  03da74e69696f70e26780749dbe291e16862c014dc46cbb4bb983cde84270882
            voc         2645  2  voc_splits2/2645_train_supervised.txt  b36005a5fc6111e1027611937f29ad3b99f702e970ad632c04fec1dc4fbcf743
            cityscapes   372  0  city_splits0/372_train_supervised.txt  cd1c2d61ac19637e94f867fae36c0170bd9c368e54c826d6f1e42242bb32c36b
            cityscapes   744  0  city_splits0/744_train_supervised.txt  6e30a1fc23be4d0ed22427570773c24ecf475f13cc3fe17d508a43660ce1c7ae
            cityscapes   372  1  city_splits1/372_train_supervised.txt  ed92718993e26acb614370f34c8f32c208c673f8746bd5c5cc7a50bb26c88dc1
            cityscapes   744  1  city_splits1/744_train_supervised.txt  83191d6082ec09eb12ddfd3b6f560b0bb5e11e8394cf25d9d5d271a408b21210
            cityscapes   372  2  city_splits2/372_train_supervised.txt  49bd32b2ce6779b039f50712a1f16741db726045b4b73f0b01e10c170af84c9e
            cityscapes   744  2  city_splits2/744_train_supervised.txt  597a4c469e9f33b5f955bcf5a252f2d876a43448264f812d0aaa1912439dcbec
        """),
    ),
    # Alonso et al., ICCV 2021: permutations of the lines of train_aug.txt, of which the first are labelled
    "cmb": Family(
        f"{GITHUB}/Shathe/SemiSeg-Contrastive/dc53c6da64f91c1ebce320f6e2ce3cc9f3df7414/splits/voc",
        _table("""
            voc   212  0  split_0.pkl  28a995226b364935068ef20dd96d9637530039ba84ce43f02c0e86a32f1a7940
            voc   530  0  split_0.pkl  28a995226b364935068ef20dd96d9637530039ba84ce43f02c0e86a32f1a7940
            voc  1323  0  split_0.pkl  28a995226b364935068ef20dd96d9637530039ba84ce43f02c0e86a32f1a7940
            voc   212  1  split_1.pkl  7d0266db9bd1dc96f64bc5b90cc01bb67652284c5bd88d47f3da470724c2f0cd
            voc   530  1  split_1.pkl  7d0266db9bd1dc96f64bc5b90cc01bb67652284c5bd88d47f3da470724c2f0cd
            voc  1323  1  split_1.pkl  7d0266db9bd1dc96f64bc5b90cc01bb67652284c5bd88d47f3da470724c2f0cd
            voc   212  2  split_2.pkl  2b35b6049e2afbce321fb2a06821139eb4b6aa6021772960e995be7f17f07d36
            voc   530  2  split_2.pkl  2b35b6049e2afbce321fb2a06821139eb4b6aa6021772960e995be7f17f07d36
            voc  1323  2  split_2.pkl  2b35b6049e2afbce321fb2a06821139eb4b6aa6021772960e995be7f17f07d36
        """),
        File("train_aug.txt", "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"),
    ),
    # VOC's own training list and parts of it, as UniMatch has them (Yang et al., CVPR 2023)
    "classic": Family(
        f"{GITHUB}/LiheYoung/UniMatch/0324f3dd4a22128105a5eb135d2586c0bb3cc647/splits",
        _table("""
            voc    92  0  pascal/92/labeled.txt    8a02aa6a1253178b105bd25b36f0a27daeedf6b3959f399aa47d24783f3a8306
            voc   183  0  pascal/183/labeled.txt   de3f4680391cb15324402dae17ac0919933d0d9004c11a641c924f3f67147f9f
            voc   366  0  pascal/366/labeled.txt   74f6bd1e459a8b46fc204529d70b603769f8a45aef4553df8a5c04b5698e77b7
            voc   732  0  pascal/732/labeled.txt   02c8ec5b62e27364f5bc91eb95bccf54debaa721e9d31c50c07507aea258fd0f
            voc  1464  0  pascal/1464/labeled.txt  b20486876df309c57c8230e957b2957fff5392ff5cb11f225e8453ed6c50ba3e
        """),
    ),
    # Chen et al., CVPR 2021
    "cps": Family(
        f"{GITHUB}/charlesCXK/TorchSemiSeg/5e0c29c02738728b6848a732817db15620a6e034/DATA",
        _table("""
            voc          662  0  pascal_voc/subset_train_aug/train_aug_labeled_1-16.txt   7dada8ccc5eb6309b4b81e172dfc24f0d83ea72078675083778ca10487182748
            voc         1323  0  pascal_voc/subset_train_aug/train_aug_labeled_1-8.txt    df63f50a798512c3befb5364052733bd8bc169f609e034e9f55b5853798ead10
            voc         2646  0  pascal_voc/subset_train_aug/train_aug_labeled_1-4.txt    62c450787069b36d88ea7bb35895a808885720ae833bae8b9c81775731062ea1
            voc         5291  0  pascal_voc/subset_train_aug/train_aug_labeled_1-2.txt    192132b4f645339dd143850359d4e27bb62ba3ce447553a07de23fbff4f0c8b9
            cityscapes   186  0  city/config_new/subset_train/train_aug_labeled_1-16.txt  4f2712f22e53acdf6e359c5afc4b10fa06725ff1e54b36abcf5dafc759b4405b
            cityscapes   372  0  city/config_new/subset_train/train_aug_labeled_1-8.txt   beee3025dd198cee48047a1a9a131adbd859ab1bdb7dfbb45df3583409720ed7
            cityscapes   744  0  city/config_new/subset_train/train_aug_labeled_1-4.txt   1eff973e47da3c5988b07891589faf3a41feef582ea1deae0dc22fad2ec1aba7
            cityscapes  1488  0  city/config_new/subset_train/train_aug_labeled_1-2.txt   79cc85ca788bdf79d71f560ec597e30057056a7457971c4e51198a93b9521921
        """),
    ),
    # Wang et al., CVPR 2022
    "u2pl": Family(
        f"{GITHUB}/Haochen-Wang409/U2PL/ab3d2be313d4d6b2885e7a0213d4fce82a803b79/data/splits",
        _table("""
            voc          662  0  pascal/662/labeled.txt       e9bb5d18af8041799389ad0c2274f043161a912837416c2c6403d9d901dee4c1
            voc         1323  0  pascal/1323/labeled.txt      112dcea11e1a1d211e03db87c743989ffb29c16f90ce30da7c118b3c28f8d697
            voc         2646  0  pascal/2646/labeled.txt      4cc769f75d69c74e4eabdb1dff7cb93ac22a4c30a9b759a7cedec3e3c6b7ed28
            voc         5291  0  pascal/5291/labeled.txt      989051b20c885ee09c37b5e5d005c067a6cd1bbcf40b06df6eb4af9e41992296
            cityscapes   186  0  cityscapes/186/labeled.txt   b325a363ec870628cbf3265bf48f9d9bf3e6e87a6e5c004ca989cda6279a0fd4
            cityscapes   372  0  cityscapes/372/labeled.txt   a7fa9c926a15c3983a6b2b884dc455bcfaf59ddc2cbe63f895e1d067d5a7f9b4
            cityscapes   744  0  cityscapes/744/labeled.txt   489d49d7dde31150a862dbd0aabfa8e787b9278ee51978d7d3d2c8e67d666c66
            cityscapes  1488  0  cityscapes/1488/labeled.txt  1c345bd7ed630b201bc3c3cde2604dce0d65df35c142bbf35ffea8a699485488
        """),
    ),
    # Yang et al., CVPR 2022
    "stpp": Family(
        f"{GITHUB}/LiheYoung/ST-PlusPlus/f4e7a571fe59f4254fe12a5073da1231d29d0a79/dataset/splits",
        _table("""
            voc          92  0  pascal/92/split_0/labeled.txt        8a02aa6a1253178b105bd25b36f0a27daeedf6b3959f399aa47d24783f3a8306
            voc          92  1  pascal/92/split_1/labeled.txt        67b06da28cbde7ad44e93c3e1e449c81e84f46eda3cec49d7328dc2f2fc4646c
            voc          92  2  pascal/92/split_2/labeled.txt        554a6959211e26e1729d96385e4f10bfa2a2ec38afa97573f541614ee601705b
            cityscapes  100  0  cityscapes/1_30/split_0/labeled.txt  b11041fef70476fb5564af0ef006a8013622da9cf49c7faf4182f3e26eb32742
            cityscapes  100  1  cityscapes/1_30/split_1/labeled.txt  666065ac67d2d12f3cad32c1a9aacdeab80b19db24045b48fedfba4ba3c6cfe2
            cityscapes  100  2  cityscapes/1_30/split_2/labeled.txt  e5704fb194be81abd544f731f29fde3c0b4ff41e41e55cda0e9f318c4df3890d
        """),
    ),
}
