"""The architectures that have a name, and any other that ``package.module:factory`` names.

State-dict names are those of each architecture's public checkpoints, and so are the default mean and std.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from hce_engine.errors import InputError
from hce_engine.preprocess import IMAGENET, UINT8_NHWC, InputSpec
from hce_engine.training.models.checkpoint import load_checkpoint
from hce_engine.training.models.mobilenet import MobileNetV2
from hce_engine.training.models.resnet_cifar import CifarResNet
from hce_engine.training.models.resnet_imagenet import BasicBlock, Bottleneck, ImageNetResNet
from hce_engine.training.models.vgg import Vgg16Bn
from hce_engine.training.models.wide_resnet import WideResNet

__all__ = ["MODELS", "Arch", "load_checkpoint", "resolve"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR10_WIDE = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))


@dataclass(frozen=True)
class Arch:
    """An architecture with a name.

    factory: called with ``num_classes`` and gives a module for normalised float32 (N, 3, H, W) images.
    input: default images, with the mean and std of the public checkpoints.  classes: default number of classes.
    renames: (regular expression, replacement) pairs for keys of public checkpoints, see :func:`load_checkpoint`.
    """

    name: str
    factory: Callable[[int], nn.Module]
    input: InputSpec
    classes: int = 10
    renames: tuple[tuple[str, str], ...] = ()


# Option-B checkpoints are public under torchvision's names for the shortcut and the head.
_OPTION_B = ((r"(^|\.)downsample\.", r"\1shortcut."), (r"^fc\.", "linear."))


def _registry() -> dict[str, Arch]:
    def cifar(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> InputSpec:
        return InputSpec(UINT8_NHWC, (3, 32, 32), *statistics)

    imagenet = InputSpec(UINT8_NHWC, (3, 224, 224), *_IMAGENET, resize=IMAGENET)
    archs = []
    for depth in (20, 32, 44, 56, 110):
        archs.append(Arch(f"resnet{depth}", partial(_resnet, depth, "A"), cifar(_IMAGENET)))
        archs.append(Arch(f"resnet{depth}-b", partial(_resnet, depth, "B"), cifar(_CIFAR10), renames=_OPTION_B))
    archs += [
        Arch("wrn16-8", partial(WideResNet, 16, 8), cifar(_CIFAR10_WIDE)),
        Arch("wrn28-10", partial(WideResNet, 28, 10), cifar(_CIFAR10_WIDE)),
        Arch("vgg16-bn", Vgg16Bn, cifar(_CIFAR10)),
        Arch("resnet18", partial(ImageNetResNet, BasicBlock, (2, 2, 2, 2)), imagenet, 1000),
        Arch("resnet34", partial(ImageNetResNet, BasicBlock, (3, 4, 6, 3)), imagenet, 1000),
        Arch("resnet50", partial(ImageNetResNet, Bottleneck, (3, 4, 6, 3)), imagenet, 1000),
        Arch("mobilenetv2", MobileNetV2, imagenet, 1000),
    ]
    return {a.name: a for a in archs}


def _resnet(depth: int, shortcut: str, num_classes: int) -> nn.Module:
    return CifarResNet(depth, shortcut, num_classes)


MODELS: dict[str, Arch] = _registry()


def resolve(name: str, num_classes: int | None = None) -> tuple[nn.Module, Arch]:
    """A new module and its architecture, by registered name or as ``package.module:factory``.

    A factory is called with ``num_classes`` if it takes such an argument. What images it is for is read from an
    attribute ``input_spec`` (an InputSpec) of the factory or the module; without one they are 32x32 RGB pixels in
    0..1, not normalised.
    Raises InputError for an unknown name, and for a factory that cannot be imported or does not yield a module.
    """
    if name in MODELS:
        arch = MODELS[name]
        arch = arch if num_classes is None else replace(arch, classes=num_classes)
        return arch.factory(arch.classes), arch
    who = f"architecture {name!r}"
    package, colon, attribute = name.partition(":")
    if not (colon and package and attribute):
        raise InputError(
            who, expected=f"one of {', '.join(MODELS)}, or package.module:factory", got=repr(name),
            fix="correct the name; for a model of your own, name its factory function or class",
        )
    try:
        factory = getattr(importlib.import_module(package), attribute)
    except Exception as error:  # importing the user's module may raise anything
        raise InputError(
            who, expected="a factory that can be imported", got=f"{type(error).__name__}: {error}",
            fix="run from its folder or set PYTHONPATH, and check the spelling",
        ) from error
    return _own(who, name, factory, num_classes)


def _own(who: str, name: str, factory: Callable[..., nn.Module], num_classes: int | None) -> tuple[nn.Module, Arch]:
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # callables without a signature
        parameters = {}
    takes_classes = "num_classes" in parameters
    call: Callable[[int], nn.Module] = (lambda n: factory(num_classes=n)) if takes_classes else (lambda _: factory())
    default = parameters["num_classes"].default if takes_classes else 10
    classes = num_classes if num_classes is not None else default if isinstance(default, int) else 10
    try:
        module = call(classes)
    except Exception as error:  # the user's factory may raise anything
        raise InputError(
            who, expected="a factory that runs with no arguments, or with num_classes",
            got=f"{type(error).__name__}: {error}", fix="give every other argument a default",
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(
            who, expected="a torch.nn.Module from the factory", got=type(module).__name__, fix="return the module",
        )
    spec = getattr(factory, "input_spec", None) or getattr(module, "input_spec", None)
    if spec is None:
        spec = InputSpec(UINT8_NHWC, (3, 32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if not isinstance(spec, InputSpec):
        raise InputError(who, expected="input_spec to be an InputSpec", got=type(spec).__name__, fix="make it one")
    return module, Arch(name, call, spec, classes)
