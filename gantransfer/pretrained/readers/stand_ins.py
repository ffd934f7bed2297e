"""The classes of modules and networks whose objects checkpoints hold, each of which becomes a passive `Record`.

The lists are exact: a class that is missing here is refused by name, so that whoever adds one has looked at it. Nothing
of any class is known but its name; what a module holds is read from its state.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gantransfer.pretrained.readers import rebuild_numpy, rebuild_torch
from gantransfer.pretrained.readers.pickles import PROGRAM, Known, Reader, Record

_CLASSES = """
torch.nn.modules.module: Module
torch.nn.modules.activation: ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU GLU SiLU Mish Sigmoid Tanh Softplus Softmax
    LogSoftmax Hardtanh Hardswish Hardsigmoid LogSigmoid Softsign Threshold MultiheadAttention
torch.nn.modules.batchnorm: BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm
torch.nn.modules.container: Sequential ModuleList ModuleDict ParameterList ParameterDict
torch.nn.modules.conv: Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
torch.nn.modules.dropout: Dropout Dropout2d Dropout3d
torch.nn.modules.flatten: Flatten Unflatten
torch.nn.modules.instancenorm: InstanceNorm1d InstanceNorm2d InstanceNorm3d
torch.nn.modules.linear: Linear Identity Bilinear
torch.nn.modules.normalization: GroupNorm LayerNorm LocalResponseNorm
torch.nn.modules.padding: ZeroPad2d ReflectionPad2d ReplicationPad2d ConstantPad2d
torch.nn.modules.pixelshuffle: PixelShuffle PixelUnshuffle
torch.nn.modules.pooling: AvgPool2d MaxPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d
torch.nn.modules.sparse: Embedding
torch.nn.modules.upsampling: Upsample UpsamplingNearest2d UpsamplingBilinear2d
torch.nn.parallel.data_parallel: DataParallel
torch.nn.parallel.distributed: DistributedDataParallel
torch.nn.quantized.modules.functional_modules: FloatFunctional
torch.ao.nn.quantized.modules.functional_modules: FloatFunctional
torch.nn.utils.spectral_norm: SpectralNorm SpectralNormStateDictHook SpectralNormLoadStateDictPreHook
training.networks: Generator Discriminator
training.networks_baseline: Generator Discriminator
R3GAN.Networks: Convolution ResidualBlock UpsampleLayer DownsampleLayer GenerativeBasis DiscriminativeBasis
    GeneratorStage DiscriminatorStage Generator Discriminator
R3GAN.Resamplers: InterpolativeUpsampler InterpolativeDownsampler InterpolativeUpsamplerCUDA
    InterpolativeDownsamplerCUDA InterpolativeUpsamplerReference InterpolativeDownsamplerReference
R3GAN.FusedOperators: BiasedActivation BiasedActivationCUDA BiasedActivationReference
pg_modules.networks_fastgan: Generator DummyMapping FastganSynthesis FastganSynthesisCond
pg_modules.networks_stylegan2: Generator MappingNetwork SynthesisNetwork SynthesisBlock SynthesisLayer ToRGBLayer
    FullyConnectedLayer Conv2dLayer
pg_modules.blocks: GLU Swish InitLayer UpBlockCond UpBlockCompCond SEBlock SeparableConv2d DownBlock DownBlockPatch
    ResidualConvUnit FeatureFusionBlock NoiseInjection CCBN Interpolate
pg_modules.discriminator: SingleDisc SingleDiscCond MultiScaleD ProjectedDiscriminator
pg_modules.projector: F_RandomProj
timm.models.efficientnet_blocks: DepthwiseSeparableConv InvertedResidual ConvBnAct SqueezeExcite
timm.models.layers.conv2d_same: Conv2dSame
timm.models.layers.activations: Swish Mish Sigmoid Tanh HardSwish HardSigmoid
dnnlib.tflib.network: Network
"""


def _record(name: str) -> Known:
    return Known(name, lambda reader, args: Record(name, args))


def _listed() -> dict[tuple[str, str], Known]:
    table, module = {}, ""
    for word in _CLASSES.split():
        if word.endswith(":"):
            module = word[:-1]
        else:
            table[module, word] = _record(f"{module}.{word}")
    # The released R3GAN files carry the package's earlier name.
    renamed = {
        (module.replace("R3GAN.", "BaselineGAN."), name): known
        for (module, name), known in table.items()
        if module.startswith("R3GAN.")
    }
    return table | renamed


# Everything that a checkpoint may name.
KNOWN: dict[tuple[str, str], Any] = {
    **rebuild_numpy.TABLE,
    **rebuild_torch.TABLE,
    **_listed(),
    ("dnnlib.util", "EasyDict"): Known("dnnlib.util.EasyDict", lambda reader, args: {}),
}


class _InPrograms(Mapping[tuple[str, str], Any]):
    """What a TorchScript program may name: the list above, and classes that it brings itself.

    Those stand below `__torch__`, under names that are made up anew for each program, so that they cannot be listed.
    Their objects become the same passive records.
    """

    def __init__(self, listed: Mapping[tuple[str, str], Any]):
        self._listed = listed

    def __getitem__(self, key: tuple[str, str]) -> Any:
        module, name = key
        if module.partition(".")[0] == PROGRAM:
            return _record(f"{module}.{name}")
        return self._listed[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


def _first(reader: Reader, args: tuple) -> Any:
    return args[0]


# Lists whose entries have one type, and values that come with the text of their type.
_TYPED = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
KNOWN_IN_PROGRAMS = _InPrograms(
    KNOWN | {("torch.jit._pickle", name): Known(f"torch.jit._pickle.{name}", _first) for name in _TYPED}
)
