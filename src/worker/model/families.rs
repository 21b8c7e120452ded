//! The model families that the one decoder computes: a row each, and nothing else about them anywhere.
//!
//! In: `model_type` and `architectures` of a config.json. Out: the [`Family`] row that says how this
//! family departs from plain Llama. To add a family whose differences are known here, add a row, and
//! golden values made by transformers. May not enter: tensors, files.

/// Whether a projection has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// Never in this family.
    Absent,
    /// Always in this family.
    Present,
    /// As this key of config.json says; absent means no.
    Key(&'static str),
}

/// Which layers see only a window of the last positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// None.
    Never,
    /// All of them where `sliding_window` is a number.
    WhereSet,
    /// Those of `layer_types`, or from `max_window_layers` on, and only if `use_sliding_window`.
    WhereAsked,
}

/// One family: how it differs from plain Llama.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The architecture of a policy.
    pub causal: &'static str,
    /// The architecture of a reward model.
    pub classification: &'static str,
    /// Bias of the query, key and value projections.
    pub qkv_bias: Bias,
    /// Bias of the attention's output projection.
    pub output_bias: Bias,
    /// Bias of the three projections of the MLP.
    pub mlp_bias: Bias,
    /// Whether query and key are normalised by head before rotation.
    pub qk_norm: bool,
    /// Sliding windows.
    pub window: Window,
    /// Whether `no_rope_layers` may take the rotation from some layers.
    pub some_layers_unrotated: bool,
    /// `head_dim` where config.json has none; `None` is width / heads.
    pub head_dim: Option<usize>,
    /// `rope_theta` where config.json has none.
    pub rope_theta: f64,
    /// `num_key_value_heads` where config.json has none; `None` is as many as heads.
    pub kv_heads: Option<usize>,
}

/// What most families share.
const LLAMA: Family = Family {
    model_type: "llama",
    causal: "LlamaForCausalLM",
    classification: "LlamaForSequenceClassification",
    qkv_bias: Bias::Key("attention_bias"),
    output_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    qk_norm: false,
    window: Window::Never,
    some_layers_unrotated: false,
    head_dim: None,
    rope_theta: 10_000.0,
    kv_heads: None,
};

/// Every family that this worker computes.
pub const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mistral",
        causal: "MistralForCausalLM",
        classification: "MistralForSequenceClassification",
        qkv_bias: Bias::Absent,
        output_bias: Bias::Absent,
        mlp_bias: Bias::Absent,
        window: Window::WhereSet,
        kv_heads: Some(8),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        causal: "Qwen2ForCausalLM",
        classification: "Qwen2ForSequenceClassification",
        qkv_bias: Bias::Present,
        output_bias: Bias::Absent,
        mlp_bias: Bias::Absent,
        window: Window::WhereAsked,
        kv_heads: Some(32),
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        causal: "Qwen3ForCausalLM",
        classification: "Qwen3ForSequenceClassification",
        mlp_bias: Bias::Absent,
        qk_norm: true,
        window: Window::WhereAsked,
        head_dim: Some(128),
        kv_heads: Some(32),
        ..LLAMA
    },
    Family {
        model_type: "smollm3",
        causal: "SmolLM3ForCausalLM",
        classification: "SmolLM3ForSequenceClassification",
        window: Window::WhereAsked,
        some_layers_unrotated: true,
        rope_theta: 2_000_000.0,
        kv_heads: Some(4),
        ..LLAMA
    },
];

/// The row of a model, by `model_type`, or by its first architecture where that is absent.
#[must_use]
pub fn find(model_type: Option<&str>, architecture: Option<&str>) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| match model_type {
        Some(name) => family.model_type == name,
        None => {
            architecture.is_some_and(|name| name == family.causal || name == family.classification)
        }
    })
}

/// The names of all families, for an error that lists them.
#[must_use]
pub fn names() -> String {
    FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ")
}
