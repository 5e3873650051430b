"""What to say of a command-line option that does not exist: the option, or the setting, that is meant."""

from collections.abc import Mapping, Sequence

from trainables.config import dotted_names
from trainables.hints import closest, meant, squashed

_RUNS = ("train", "ablate", "ensemble")
_TRAINING = ("train", "ablate", "search", "ensemble")
_READING = (*_TRAINING, "prepare", "baseline")
# Which commands take an option that is named here; a test compares this with the commands themselves.
TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "--set": (*_TRAINING, "quickstart"),
    "--config": _TRAINING,
    "--aux": _TRAINING,
    "--device": (*_TRAINING, "predict"),
    "--processes": _RUNS,
    "--max-concurrent": ("search",),
    "--gpus-per-trial": ("search",),
    "--cpus-per-trial": ("search",),
    "--per-gpu": _RUNS,
    "--ray": _RUNS,
    "--address": _TRAINING,
    "--cpus-per-model": _RUNS,
    "--compile": _TRAINING,
    "--tf32": _TRAINING,
    "--out": (*_TRAINING, "predict", "export", "quickstart", "doctor"),
    "--data": _READING,
    "--target": (*_READING, "check"),
    "--unit": (*_READING, "check"),
    "--energy": (*_READING, "check"),
    "--total-energy": (*_READING, "check"),
    "--id": (*_READING, "predict", "check"),
    "--structure": (*_READING, "predict", "check"),
    "--all-data": ("train", "ensemble"),
    "--per-cell": (*_READING, "check"),
    "--drop-missing": (*_READING, "check"),
    "--folds-by": _READING,
    "--fold-column": _READING,
    "--test": _READING,
    "--limit": (*_READING, "quickstart", "check"),
    "--folds": (*_RUNS, "baseline"),
    "--fold": ("search",),
    "--seed": ("search",),
    "--seeds": ("ablate", "ensemble"),
    "--views": ("ensemble",),
    "--distil": ("ensemble",),
    "--trials": ("search",),
    "--time-budget": ("train", "search"),
    "--preset": ("train",),
    "--scheduler": ("search",),
    "--check-seeds": ("search",),
    "--resume": ("search",),
    "--start": ("ablate", "prepare"),
    "--published": (*_RUNS, "baseline"),
}
_MARKS = (
    "--ray",
    "--tf32",
    "--energy",
    "--total-energy",
    "--per-cell",
    "--drop-missing",
    "--all-data",
    "--distil",
    "--resume",
)
_RESUMES = "leave it out: the same command resumes what its folder holds"
_FILE_IS_AN_ARGUMENT = "the file follows the run's folder: crystaltune predict DIR FILE"

# By option without its marks: texts that begin with an option are said where the command takes it, others always;
# VALUE stands for what was typed after the option.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("gpu", "cuda", "usegpu", "usecuda", "gpus", "ngpus", "numgpus", "accelerator"), ("--device cuda",)
    ),
    **dict.fromkeys(("cpu", "nocuda", "nogpu", "cpuonly", "usecpu"), ("--device cpu",)),
    **dict.fromkeys(
        ("workers", "numworkers", "nworkers", "jobs", "njobs", "nproc", "parallel", "processes", "ncpus"),
        ("--processes VALUE", "--max-concurrent VALUE"),
    ),
    **dict.fromkeys(
        (
            "output",
            "outdir",
            "outputdir",
            "outputfolder",
            "outfolder",
            "savedir",
            "savepath",
            "save",
            "o",
            "outputfile",
        ),
        ("--out VALUE",),
    ),
    **dict.fromkeys(("resultsdir", "logdir", "rundir", "workdir", "folder", "dir"), ("--out VALUE",)),
    **dict.fromkeys(
        ("file", "input", "csv", "json", "dataset", "datafile", "table", "inputfile", "rootdir", "path", "traindata"),
        ("--data VALUE", _FILE_IS_AN_ARGUMENT),
    ),
    **dict.fromkeys(("name", "task", "taskname"), ("the task's name follows the command: {command} VALUE",)),
    **dict.fromkeys(
        ("targetcolumn", "column", "label", "labels", "y", "property", "prop", "targetname", "targetkey", "targets"),
        ("--target VALUE",),
    ),
    **dict.fromkeys(("units", "targetunit"), ("--unit VALUE",)),
    **dict.fromkeys(
        ("ntrials", "numtrials", "maxtrials", "numsamples", "nsamples", "niter", "evals", "maxevals"),
        ("--trials VALUE",),
    ),
    **dict.fromkeys(("timeout", "timelimit", "maxtime", "walltime", "budgettime"), ("--time-budget VALUE",)),
    **dict.fromkeys(
        ("nrows", "maxrows", "rows", "subset", "ndata", "maxsamples", "head", "ntrain", "samplesize"),
        ("--limit VALUE",),
    ),
    **dict.fromkeys(("fold", "folds", "foldnumber"), ("--folds VALUE", "--fold VALUE")),
    **dict.fromkeys(
        ("nfolds", "kfold", "kfolds", "cv", "nsplits"), ("--folds 0-4 (there are five; choose some of them)",)
    ),
    **dict.fromkeys(("seed", "randomseed", "randomstate", "rng"), ("--seed VALUE", "--set seed=VALUE")),
    **dict.fromkeys(
        ("seeds", "nseeds", "numseeds"), ("--seeds VALUE", "--check-seeds VALUE", "--set ensemble.members=VALUE")
    ),
    **dict.fromkeys(
        ("resume", "restart", "continue", "overwrite", "resumefrom", "restartfrom"), ("--resume", _RESUMES)
    ),
    **dict.fromkeys(("settings", "yaml", "configfile", "configuration", "params", "cfg", "conf"), ("--config VALUE",)),
    **dict.fromkeys(("key", "override", "setting", "s"), ("--set KEY=VALUE",)),
    **dict.fromkeys(("auxiliary", "auxtask", "auxtasks", "multitask"), ("--aux VALUE",)),
    **dict.fromkeys(("torchcompile", "nocompile"), ("--compile on or --compile off",)),
    **dict.fromkeys(("early", "pruner", "pruning"), ("--scheduler asha",)),
    **dict.fromkeys(("scratch", "fromscratch"), ("--start scratch", "--set model.start=scratch")),
    **dict.fromkeys(
        ("start", "pretrained", "weights", "model", "checkpoint", "modelname"),
        ("--start VALUE", "--set model.start=VALUE (0.3.0, r2scan, 0.2.0 or scratch)"),
    ),
    **dict.fromkeys(
        ("test", "predict", "evaluate", "eval"),
        ("every fold's test rows are predicted anyway; new structures: crystaltune predict DIR FILE",),
    ),
    **dict.fromkeys(
        ("testsize", "testratio", "testsplit", "testdata"),
        ("the five folds define the test rows; --set data.val_share chooses the validation rows among the rest",),
    ),
    **dict.fromkeys(("isenergy", "formationenergy"), ("--energy",)),
    **dict.fromkeys(("allowtf32",), ("--tf32",)),
    **dict.fromkeys(
        ("members", "nmembers", "nmodels", "ensemblesize"), ("--seeds VALUE", "--set ensemble.members=VALUE")
    ),
    **dict.fromkeys(("distill", "student", "distillation"), ("--distil", "--set distil.weight=0.5")),
    **dict.fromkeys(("views", "tta", "nviews"), ("--views VALUE", "--set tta.views=VALUE")),
}


def option_hint(option: str, words: Sequence[str] = ()) -> str | None:
    """Return what to use instead of an option that does not exist, or None where nothing is known to fit.

    Args:
        option: as typed, such as "--epochs"; a value after "=" is left out.
        words: the command line without the program's name, for the command and the option's value.

    Returns:
        For example "use --set optim.epochs=3".
    """
    name = option.partition("=")[0]
    command, value = next((word for word in words if not word.startswith("-")), ""), typed_value(name, words)
    texts = _OPTIONS.get(squashed(name), ())
    for text in texts:
        if _fits(text, command):
            return _filled(text, command, value)
    elsewhere = next((first for first in (name, *(text.split()[0] for text in texts)) if first in TAKEN_BY), None)
    if elsewhere is None and (own := _misspelt(name, command)) is not None:
        return _filled(f"{own} VALUE" if value and own not in _MARKS else own, command, value)
    if elsewhere is not None:
        return f"{elsewhere} is an option of {_in_words(TAKEN_BY[elsewhere])}, not of {command}"
    if not _fits("--set", command):
        return None
    keys = meant(name.lstrip("-"), list(dotted_names()))
    if isinstance(keys, str):
        return keys
    return _filled(f"--set {keys[0]}=VALUE", command, value) if keys else None


def _misspelt(name: str, command: str) -> str | None:
    """Return the option of the command that a word is nearly, or None."""
    own = [option for option, commands in TAKEN_BY.items() if command in commands]
    return closest(name, own, cutoff=0.75)


def _fits(text: str, command: str) -> bool:
    """Return True where what a text tells can be typed after the command."""
    if text == _FILE_IS_AN_ARGUMENT:
        return command == "predict"
    option = text.split()[0]
    return option not in TAKEN_BY or command in ("", *TAKEN_BY[option])


def _filled(text: str, command: str, value: str) -> str:
    said = text.replace("{command}", f"crystaltune {command}".strip())
    for place in ("KEY=VALUE", "VALUE"):
        if value and place in said:
            said = said.replace(place, value)
            break
    return f"use {said}" if said.startswith("--") else said


def typed_value(name: str, words: Sequence[str]) -> str:
    """Return what was typed after an option, where it looks like its value."""
    for place, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and place + 1 < len(words) and not words[place + 1].startswith("-"):
            return words[place + 1]
    return ""


def _in_words(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
