"""What to tell whoever uses a configuration key that does not exist: the key that is meant, or why there is none."""

import difflib
import re
from collections.abc import Iterable, Sequence

_LIKELIEST = ("optim", "model", "data", "loss", "ensemble")  # sections, where several have a key of one name
_NO_REGULARISER = "there is no dropout; optim.weight_decay, augment.* and optim.averaging regularise"
_ARCHITECTURE = (
    "CHGNet's architecture is fixed by its pretrained weights; model.width narrows it (with model.start=scratch)"
)
_FOLDS = "there are five folds, Matbench's own for its tasks; `folds` chooses which of them are trained"
_TEST_SHARE = (
    "the five folds define the test rows; data.val_share is the share of the training rows that is held out to choose "
    "the epoch"
)
_DEVICE = "it is not a setting of the model: use `device=cpu` or `device=cuda`"
_WORKERS = "it is not a setting of the model: use `processes`"

# Words of scikit-learn, Lightning, ALIGNN, CGCNN, Keras and others, without "_" and "-": keys here, or a reason.
WORDS: dict[str, tuple[str, ...] | str] = {
    **dict.fromkeys(
        ("lr", "learningrate", "learnrate", "initiallr", "initlr", "baselr", "maxlr", "eta"), ("optim.lr",)
    ),
    **dict.fromkeys(("minlr", "lrmin", "endlr", "etamin"), ("optim.final_lr",)),
    **dict.fromkeys(
        ("epoch", "nepochs", "numepochs", "maxepochs", "epochsnum", "numtrainepochs", "iterations", "maxiter", "niter"),
        ("optim.epochs",),
    ),
    **dict.fromkeys(("maxsteps", "numsteps", "steps"), "training is counted in epochs, not in steps: set optim.epochs"),
    **dict.fromkeys(
        ("batch", "batchsize", "bs", "trainbatchsize", "minibatch", "minibatchsize"), ("optim.batch_size",)
    ),
    **dict.fromkeys(("wd", "decay", "l2", "weightdecay", "l2reg", "regularization", "alpha"), ("optim.weight_decay",)),
    **dict.fromkeys(("optimizer", "optimiser", "opt", "solver", "optimizername", "optimizertype"), ("optim.name",)),
    **dict.fromkeys(("scheduler", "lrscheduler", "lrschedule", "learningrateschedule", "sched"), ("optim.schedule",)),
    **dict.fromkeys(("warmupsteps", "warmupratio", "warmupepochs", "pctstart"), ("optim.warmup",)),
    **dict.fromkeys(
        ("clip", "gradclip", "gradientclip", "gradientclipval", "clipnorm", "maxgradnorm", "clipgrad"),
        ("optim.grad_clip",),
    ),
    **dict.fromkeys(("ema", "swa", "useema", "useswa"), ("optim.averaging",)),
    **dict.fromkeys(("layerdecay", "llrd", "layerwisedecay", "discriminativelr"), ("optim.layer_decay",)),
    **dict.fromkeys(("loss", "lossfn", "lossfunction", "criterion", "lossname", "losstype"), ("loss.name",)),
    **dict.fromkeys(("huberdelta",), ("loss.delta",)),
    **dict.fromkeys(("randomseed", "randomstate", "rngseed", "manualseed", "rng"), ("seed",)),
    **dict.fromkeys(("seeds", "nseeds", "numseeds"), ("ensemble.members", "seed", "distil.seeds")),
    **dict.fromkeys(("nmodels", "nensemble", "ensemblesize", "nestimators"), ("ensemble.members",)),
    **dict.fromkeys(("freezelayers", "frozen", "freezebackbone", "freezetrunk", "trainable"), ("model.freeze",)),
    **dict.fromkeys(
        (
            "pretrained",
            "pretrainedmodel",
            "weights",
            "checkpoint",
            "modelname",
            "backbone",
            "foundation",
            "finetune",
            "init",
        ),
        ("model.start",),
    ),
    **dict.fromkeys(("pool", "readout", "poolingtype"), ("model.pooling",)),
    **dict.fromkeys(
        ("log", "logtransform", "logtarget", "uselog", "targettransform", "asinh", "transform"), ("model.transform",)
    ),
    **dict.fromkeys(("robust", "robustscaler", "targetscale", "targetscaling"), ("model.scale",)),
    **dict.fromkeys(
        (
            "hidden",
            "hiddendim",
            "hiddensize",
            "hiddenfeatures",
            "hfealen",
            "atomfealen",
            "embeddingdim",
            "channels",
            "atomfeadim",
        ),
        ("model.width",),
    ),
    **dict.fromkeys(
        (
            "valratio",
            "valsize",
            "valsplit",
            "validationsplit",
            "validationsize",
            "valfraction",
            "validationfraction",
            "val",
            "validation",
        ),
        ("data.val_share",),
    ),
    **dict.fromkeys(
        ("augmentation", "noise", "perturb", "perturbation", "rattle"), ("augment.strain", "augment.displacement")
    ),
    **dict.fromkeys(("distill", "distillation"), ("distil.weight",)),
    **dict.fromkeys(("ttaviews", "nviews"), ("tta.views",)),
    **dict.fromkeys(
        ("patience", "earlystopping", "earlystop", "earlystoppingpatience", "nearlystopping", "stopearly", "mindelta"),
        ("optim.patience",),
    ),
    **dict.fromkeys(("dropout", "dropoutrate", "droprate"), _NO_REGULARISER),
    **dict.fromkeys(
        (
            "layers",
            "nlayers",
            "numlayers",
            "nconv",
            "nblocks",
            "numblocks",
            "alignnlayers",
            "gcnlayers",
            "nh",
            "cutoff",
            "radius",
            "maxneighbors",
            "maxnumnbr",
            "neighbors",
            "activation",
            "heads",
            "nheads",
            "architecture",
        ),
        _ARCHITECTURE,
    ),
    **dict.fromkeys(("nfolds", "kfold", "kfolds", "cv", "nsplits", "folds"), _FOLDS),
    **dict.fromkeys(
        ("testratio", "testsize", "testsplit", "trainratio", "trainsize", "trainsplit", "nval", "ntest", "ntrain"),
        _TEST_SHARE,
    ),
    **dict.fromkeys(
        ("momentum", "betas", "beta1", "beta2", "eps", "amsgrad", "nesterov"),
        "the optimiser's other constants are fixed; optim.name, optim.lr and optim.weight_decay are settings",
    ),
    **dict.fromkeys(("gpu", "gpus", "cuda", "cpu", "device", "accelerator", "devices"), _DEVICE),
    **dict.fromkeys(("workers", "numworkers", "nworkers", "njobs", "numthreads", "threads"), _WORKERS),
    **dict.fromkeys(("target", "targetname", "property"), "the target is not a setting: use `target` with `data`"),
    **dict.fromkeys(
        ("amp", "fp16", "bf16", "precision", "mixedprecision", "usefp16"),
        "training is in float32; `tf32` allows TF32 products on a GPU",
    ),
    **dict.fromkeys(
        ("compile", "torchcompile"), "it is not a setting of the model: use `compiled=on` or `compiled=off`"
    ),
    **dict.fromkeys(
        ("standardize", "normalize", "standardscalerandpca", "scaler", "normalization"),
        "targets are standardised by themselves (energies through a refitted reference of each element; properties by "
        "mean and standard deviation, or model.scale=robust)",
    ),
    **dict.fromkeys(("shuffle",), "training rows are always shuffled, by seed"),
}
SECTION_WORDS = {
    **dict.fromkeys(("optimizer", "optimiser", "training", "train", "trainer", "scheduler", "opt"), "optim"),
    **dict.fromkeys(("augmentation", "aug"), "augment"),
    **dict.fromkeys(("distill", "distillation"), "distil"),
    **dict.fromkeys(("net", "network", "architecture", "chgnet"), "model"),
    **dict.fromkeys(("dataset", "dataloader"), "data"),
}


def squashed(word: str) -> str:
    """Return a word in lower case, without the marks that people put into or leave out of names."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def meant(key: str, names: Sequence[str]) -> tuple[str, ...] | str:
    """Return the keys that a wrong key may mean, the likeliest first, or in a sentence why there is none.

    Args:
        names: all keys, dotted.

    Returns:
        An empty tuple where nothing is near.
    """
    section, _, last = key.rpartition(".")
    by_squashed = {squashed(name): name for name in names}
    if squashed(key) in by_squashed:
        return (by_squashed[squashed(key)],)
    own = [name for name in names if section and name.rpartition(".")[0] == section]
    word = squashed(last)
    tails = [name for name in names if squashed(_tail(name)) == word]
    begun = [name for name in own if len(last) > 2 and _tail(name).startswith(last)]
    return (
        _near_tail(last, own, 0.8)
        or WORDS.get(word)
        or tuple(begun)
        or _ordered(tails, section)
        or WORDS.get(closest(word, WORDS, cutoff=0.88) or "", ())
        or _near_tail(last, own, 0.6)
        or _ordered(_near_tail(last, names, 0.75), section)
        or tuple(difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.75))
    )


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that is nearest to a mistyped one, whatever the case; None where none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return what follows an unknown name: the nearest known one (of the whole, or of its last part), or all."""
    names = list(known)
    tails = {_tail(each): each for each in names}
    last = _tail(name)
    near = tails.get(last) or closest(name, names) or tails.get(closest(last, tails) or "")
    return f" (did you mean '{near}'?)" if near else f" (known: {', '.join(names)})"


def hint(key: str, names: Sequence[str]) -> str:
    """Return what follows "unknown key '...'": the key that is meant, why there is none, or where all are listed."""
    keys = meant(key, names)
    if isinstance(keys, str):
        return f": {keys}"
    if keys:
        first, last = ", ".join(f"'{name}'" for name in keys[:-1]), f"'{keys[-1]}'"
        return f" (did you mean {f'{first} or {last}' if first else last}?)"
    section = key.split(".")[0]
    own = [_tail(name) for name in names if "." in name and name.split(".")[0] == section]
    return f" ({section} has {', '.join(own)})" if own else f" ({where_listed(names)})"


def where_listed(names: Iterable[str]) -> str:
    """Return the sections, and where their keys are found."""
    sections = dict.fromkeys(name.split(".")[0] for name in names if "." in name)
    return f"the sections are {', '.join(sections)}; fold_0/config.yaml of any run lists all keys"


def section_hint(name: str, sections: Sequence[str]) -> str:
    """Return what is appended to an unknown section: the one that is meant, or all of them."""
    near = SECTION_WORDS.get(squashed(name)) or closest(name, sections)
    return f" (did you mean '{near}'?)" if near else f" (the sections are {', '.join(sections)})"


def _tail(name: str) -> str:
    return name.rpartition(".")[2]


def _ordered(names: Sequence[str], section: str) -> tuple[str, ...]:
    """Keys of one ending by likelihood; only that of the section that was typed, where it is nearly one."""
    own = {name.split(".")[0]: name for name in names}
    near = closest(SECTION_WORDS.get(squashed(section), section), own)
    if near:
        return (own[near],)
    places = [name.split(".")[0] for name in names]
    rank = [_LIKELIEST.index(place) if place in _LIKELIEST else len(_LIKELIEST) for place in places]
    return tuple(name for _, name in sorted(zip(rank, names, strict=True), key=lambda pair: pair[0]))


def _near_tail(last: str, names: Sequence[str], cutoff: float) -> tuple[str, ...]:
    """Return the keys with the ending that is nearest."""
    near = closest(last, sorted({_tail(name) for name in names}), cutoff=cutoff)
    return tuple(name for name in names if _tail(name) == near)
