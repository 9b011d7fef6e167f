"""Operators that have been considered and whose axes are not followed, with the reason.

A model with one of these can be pruned elsewhere: what the operator reads and writes is locked.
"""

from __future__ import annotations

from .records import MICROSOFT, ML, Trait, without_rule

_RANDOM, _ENLARGES = Trait.RANDOM, Trait.ENLARGES

without_rule(
    "its result is drawn at random",
    "Bernoulli",
    traits=_RANDOM | _ENLARGES | Trait.SAME_SHAPE | Trait.NON_NEGATIVE | Trait.ZERO_AT_ZERO,
)
without_rule("its result is drawn at random", "Multinomial", traits=_RANDOM | _ENLARGES)
without_rule(
    "its result is drawn at random",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    traits=_RANDOM | _ENLARGES,
)
without_rule(
    "it makes a window of as many elements as an operand says",
    "BlackmanWindow",
    "HammingWindow",
    "HannWindow",
    traits=_ENLARGES,
)
without_rule("it makes a matrix of constants", "EyeLike", "MelWeightMatrix")
without_rule(
    "the size of its result depends on data",
    "NonMaxSuppression",
    "NonZero",
    "Unique",
    traits=Trait.COUNTED,
)
without_rule("its result is put together by places that are data", "MaxUnpool",
             traits=Trait.INDEXES)  # fmt: skip
without_rule(
    "sequence models made of it have not been met yet",
    "CausalConvWithState",
    "LinearAttention",
    traits=Trait.STATEFUL,
)
without_rule(
    "it works on a sequence or an optional, not on a tensor",
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
)
without_rule(
    "it works on strings or files",
    "ImageDecoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
)
without_rule("it works on strings or files", "StringSplit", traits=Trait.COUNTED)
without_rule("its operands are tokens, no channels", "TfIdfVectorizer")

# --- classical machine learning, training, previews ----------------------------------------

without_rule("its operand says which elements are read", "ArrayFeatureExtractor", domain=ML,
             traits=Trait.INDEXES)  # fmt: skip
without_rule(
    "its parameters are attributes, one for each feature",
    "Binarizer",
    "Imputer",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    domain=ML,
)
without_rule(
    "it works on maps, strings or categories",
    "CastMap",
    "CategoryMapper",
    "DictVectorizer",
    "FeatureVectorizer",
    "LabelEncoder",
    "OneHotEncoder",
    "ZipMap",
    domain=ML,
)
without_rule("it has subgraphs that compute scores", "FlexAttention", domain="ai.onnx.preview")
without_rule(
    "it trains a model",
    "Adagrad",
    "Adam",
    "Gradient",
    "Momentum",
    domain="ai.onnx.preview.training",
)

# --- ONNX Runtime's own --------------------------------------------------------------------

without_rule(
    "its weights are packed or quantized in blocks",
    "DequantizeBFP",
    "GatherBlockQuantized",
    "MatMulBlockQuantizedFp4Weight",
    "MatMulBlockQuantizedFp8Weight",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulNBitsMlp",
    "MatMulNBitsQLoRA",
    "MatMulNBitsQkv",
    "MatMulPacked",
    "QuantizeBFP",
    domain=MICROSOFT,
)
without_rule(
    "it is part of generating text, with state in caches",
    "BeamSearch",
    "CausalConvWithState",
    "ConvStateReplay",
    "DecoderAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "GatedDeltaNet",
    "GatedDeltaNetStateReplay",
    "GreedySearch",
    "LinearAttention",
    "Mamba2Verify",
    "PagedAttention",
    "SpeculativePrefixCommit",
    "VarlenCausalConvWithState",
    "WhisperBeamSearch",
    domain=MICROSOFT,
    traits=Trait.STATEFUL,
)
without_rule("its result is drawn at random", "BiasDropout", "BitmaskBiasDropout", "BitmaskDropout",
             "Sampling", domain=MICROSOFT, traits=Trait.RANDOM)  # fmt: skip
without_rule(
    "its attention is sparse or over packed sequences",
    "DynamicSparseAttention",
    "LongformerAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "PackedSparseAttentionIndexer",
    "PackedSparseAttentionIndexerMerge",
    "RemovePadding",
    "RestorePadding",
    "SparseAttention",
    "SparseAttentionIndexer",
    "SparsePagedAttention",
    domain=MICROSOFT,
)
without_rule(
    "ONNX Runtime fuses it on GPUs; exporters write the operators that it stands for",
    "BiasSoftmax",
    "BiasSplitGelu",
    "BranchwiseRMSNorm",
    "EngramGate",
    "FusedMatMulActivation",
    "GatedAdd",
    "GatedRMSNorm",
    "GatedRelativePositionBias",
    "GemmFloat8",
    "GemmaRotaryEmbedding",
    "HyperConnectionLowRankMix",
    "HyperConnectionPostMix",
    "HyperConnectionPreMix",
    "LinearAttentionGate",
    "MRotaryEmbedding",
    "MoE",
    "MoEGroupRouter",
    "MoEPacked",
    "NhwcConv",
    "NhwcFusedConv",
    "QMoE",
    "RMSNormRotary",
    "RelativePositionBias",
    "RouterGateUpProj",
    "ScaledSiLU",
    "SkipGroupNorm",
    "SwiGLU",
    domain=MICROSOFT,
)
without_rule(
    "its quantization is of a kind that no exporter writes",
    "DequantizeWithOrder",
    "MulInteger",
    "QEmbedLayerNormalization",
    "QLinearReduceMean",
    "QOrderedAttention",
    "QOrderedGelu",
    "QOrderedLayerNormalization",
    "QOrderedLongformerAttention",
    "QOrderedMatMul",
    "QuantizeWithOrder",
    "ReduceSumInteger",
    domain=MICROSOFT,
)
without_rule(
    "it works on strings or tokens",
    "MurmurHash3",
    "NGramHashMapping",
    "NGramRepeatBlock",
    "Tokenizer",
    "VarlenNGramHashMapping",
    "WordConvEmbedding",
    domain=MICROSOFT,
)
without_rule("its operands say which elements are read", "CropAndResize", "GatherPacked",
             "TorchEmbedding", domain=MICROSOFT, traits=Trait.INDEXES)  # fmt: skip
without_rule("it runs what another compiler made", "EPContext", "Snpe", domain=MICROSOFT)
without_rule(
    "ONNX has an operator for it by now, which exporters write instead",
    "ConvTransposeWithDynamicPads",
    "Irfft",
    "Rfft",
    "Unique",
    domain=MICROSOFT,
)
without_rule(
    "no model that exporters write has it",
    "AttnLSTM",
    "BifurcationDetector",
    "ComplexMul",
    "ComplexMulConj",
    "DynamicTimeWarping",
    "IsAllFinite",
    "MaxpoolWithMask",
    "SampleOp",
    "SparseToDenseMatMul",
    "UnfoldTensor",
    domain=MICROSOFT,
)
without_rule(
    "pruning doesn't follow it; compiled it is its definition",
    "CDist",
    "DynamicQuantizeLSTM",
    "EmbedLayerNormalization",
    "ExpandDims",
    "GatherND",
    "MatMulInteger16",
    "MatMulNBits",
    "NhwcMaxPool",
    "Pad",
    "QAttention",
    "QLinearConv",
    "Range",
    "RotaryEmbedding",
    "TransposeMatMul",
    "Trilu",
    domain=MICROSOFT,
)
without_rule("pruning doesn't follow it; compiled it is its definition", "GroupQueryAttention",
             domain=MICROSOFT, traits=Trait.STATEFUL)  # fmt: skip
