"""The names that OpenOOD 1.5's factories answer to: what messages list, and what OpenOOD need not be asked about."""

from __future__ import annotations

NAMES: dict[str, tuple[str, ...]] = {
    "get_trainer": tuple(
        "arpl arpl_gan ascood augmix base cider conf_branch csi cutmix cutpaste dcae draem dropout dsvdd godin ish kdad "
        "logitnorm mcd mixoe mixup mos npos oe opengan palm rd4ad regmixup reweightood rotpred rts sae t2fnorm udg "
        "vos".split()
    ),
    "get_preprocessor": tuple("augmix base cider csi cutout cutpaste draem palm pixmix randaugment".split()),
    "get_network": tuple(
        "arpl_gan arpl_net ascood_net bit cider_net conf_branch_net csi_net densenet draem dropout_net dsvdd godin_net "
        "lenet mcd npos_net openmax_network opengan palm_net patchcore_net projectionNet rd4ad_net react_net "
        "resnet18_224x224 resnet18_256x256 resnet18_32x32 resnet18_64x64 resnet50 rot_net rts_net simclr_net "
        "t2fnorm_net udg vit vit-b-16 wide_resnet_50_2 wrn".split()
    ),
    "get_postprocessor": tuple(
        "ash cider conf_branch cutpaste dice draem dropout dsvdd ebo ensemble fdbd gen gmm godin gradnorm gram grood "
        "klm knn mcd mds mds_ensemble mls mos msp nci npos odin opengan openmax patchcore rankfeat rd4ad react "
        "relation residual rmds rotpred rts she ssd t2fnorm temperature_scaling vim vra".split()
    ),
    "get_evaluator": tuple("ad arpl base ece fsood mos ood osr patch".split()),
    "get_pipeline": tuple(
        "feat_extract feat_extract_opengan finetune test_acc test_ad test_ood test_ood_aps train train_ad train_arplgan "
        "train_oe train_opengan".split()
    ),
}
