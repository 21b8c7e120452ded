//! The decoder: embedding, blocks, final norm and a head, with its parameters by name.
//!
//! In: a [`ModelFolder`] and [`LoadOptions`]; then ids `[rows, tokens]` (i64, padded at the right).
//! Out: hidden states, logits, scores. The named parameters share their memory with the layers, so an
//! optimiser that writes them in place changes the model. May not enter: losses, sampling, files
//! beyond the folder.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::adapter::{Adapters, DOWN, Dropout, Switch, UP};
use super::attention::Step;
use super::block::Block;
use super::config::{Head, ModelConfig};
use super::folder::ModelFolder;
use super::joined;
use super::kv_cache::KvCache;
use super::layers::{Linear, RmsNorm};
use super::parts::{Adapting, Parts};
use super::placement::{Devices, Placement, moved};
use super::reward_head::ScoreHead;
use super::rotary::{RopeTables, Ropes, Tree};
use crate::errors::{ModelError, first_line};
use crate::in_place;
use crate::process::give_back_freed_memory;

/// The type that a model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32: the default on CPU.
    Float32,
    /// bf16: the default on GPU; f32 masters are the trainer's.
    Bfloat16,
}

impl Precision {
    /// libtorch's name for it.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
        }
    }
}

/// Which parameters carry gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// None: inference, a reference.
    Nothing,
    /// All.
    Everything,
    /// The top so many blocks, the final norm, and a score head; embedding and language head not.
    TopBlocks(usize),
    /// The matrices of adapters, and a score head: the base is frozen.
    Adapters,
}

/// The score head's tensor.
const SCORE: &str = "score.weight";

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Where its tensors live: block after block, where there are several.
    pub devices: Devices,
    /// What it computes in.
    pub precision: Precision,
    /// What learns.
    pub trainable: Trainable,
}

/// A loaded model.
#[derive(Debug)]
pub struct Transformer {
    /// Its configuration; `head` says whether it writes or scores.
    pub config: ModelConfig,
    options: LoadOptions,
    placement: Placement,
    parameters: Vec<(String, Tensor)>,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    language_head: Option<Linear>,
    score_head: Option<ScoreHead>,
    /// By device.
    ropes: Vec<RopeTables>,
    switch: Arc<Switch>,
}

impl Transformer {
    /// Reads the folder's tensors onto the device.
    ///
    /// Errors: `Read` and `Torch`; whatever can be wrong with the folder itself was found by
    /// [`ModelFolder::open`].
    pub fn load(folder: &ModelFolder, options: &LoadOptions) -> Result<Self, ModelError> {
        let torch = |error: tch::TchError| ModelError::Torch {
            dir: folder.dir.clone(),
            first_line: first_line(&error.to_string()),
        };
        let _guard = tch::no_grad_guard();
        let placement = Placement::new(&folder.config, options);
        let mut parameters = Vec::new();
        for (file, entry) in folder.tensors() {
            let stored = folder.read(file, entry)?;
            let tensor = stored
                .f_to_device_(placement.of(&entry.name), options.precision.kind(), false, false)
                .map_err(torch)?;
            parameters.push((entry.name.clone(), tensor));
        }
        let head = folder.adapter().and_then(|folder| folder.adapters.score_head.as_ref());
        if let Some(head) = head.filter(|_| parameters.iter().all(|(name, _)| name != SCORE)) {
            let own = head.to_device(placement.head()).to_kind(options.precision.kind());
            parameters.push((SCORE.to_owned(), own));
        }
        if options.devices.all().len() > 1 {
            let dir = folder.dir.display();
            tracing::info!(model = %dir, "its blocks lie on several devices: {}", placement.words());
        }
        let laid = (*options, placement);
        let model = Self::build(folder.config.clone(), laid, parameters, None).map_err(|name| {
            ModelError::Tensor { name, problem: "is missing".to_owned(), dir: folder.dir.clone() }
        })?;
        give_back_freed_memory();
        Ok(model)
    }

    /// Builds a model from named parameters, which it keeps and shares; one that does not
    /// lie where [`Placement`] has it is moved there.
    ///
    /// Errors: the name of a tensor that the config calls for and that is not there.
    pub fn assemble(
        config: ModelConfig,
        options: LoadOptions,
        parameters: Vec<(String, Tensor)>,
    ) -> Result<Self, String> {
        let placement = Placement::new(&config, &options);
        let _no_grad = tch::no_grad_guard();
        let laid = |(name, tensor): (String, Tensor)| {
            let own = tensor.to_device(placement.of(&name));
            (name, own)
        };
        let parameters = parameters.into_iter().map(laid).collect();
        Self::build(config, (options, placement), parameters, None)
    }

    fn build(
        config: ModelConfig,
        (options, placement): (LoadOptions, Placement),
        mut parameters: Vec<(String, Tensor)>,
        adapting: Option<Adapting>,
    ) -> Result<Self, String> {
        let joined = match (options.trainable, &adapting) {
            (Trainable::Nothing, None) => joined::join(config.layers, &mut parameters),
            _ => Vec::new(),
        };
        for (name, tensor) in &parameters {
            let learns = learns(&config, options.trainable, name);
            let _ = tensor.set_requires_grad(learns);
        }
        let parts = Parts {
            config: &config,
            placement: &placement,
            parameters: &parameters,
            joined: &joined,
            adapting: adapting.as_ref(),
        };
        let blocks =
            (0..config.layers).map(|layer| parts.block(layer)).collect::<Result<_, _>>()?;
        let embedding = parts.get("model.embed_tokens.weight")?;
        let norm = parts.norm("model.norm")?;
        let language_head = match config.head {
            Head::Score => None,
            Head::Language if config.tied => Some(Linear::new(embedding.shallow_clone(), None)),
            Head::Language => Some(parts.linear("lm_head", false)?),
        };
        let score_head = match config.head {
            Head::Score => Some(ScoreHead::new(parts.get(SCORE)?)),
            Head::Language => None,
        };
        let tables = |device: &Device| RopeTables::new(&config, options.precision.kind(), *device);
        let ropes = placement.devices().iter().map(tables).collect();
        Ok(Self {
            config,
            options,
            placement,
            parameters,
            embedding,
            blocks,
            norm,
            language_head,
            score_head,
            ropes,
            switch: adapting.map_or_else(Arc::default, |adapting| adapting.switch),
        })
    }

    /// The same model with a score head in place of its language head. `weight`: `[1, width]`.
    ///
    /// Errors: as [`Self::assemble`].
    pub fn with_score_head(self, weight: &Tensor) -> Result<Self, String> {
        let mut config = self.config;
        config.head = Head::Score;
        config.labels = Some(1);
        let mut parameters = self.parameters;
        parameters.retain(|(name, _)| name != "lm_head.weight" && name != SCORE);
        let kind = self.options.precision.kind();
        let weight = weight.to_device(self.placement.head()).to_kind(kind).detach();
        parameters.push((SCORE.to_owned(), weight));
        Self::build(config, (self.options, self.placement), parameters, None)
    }

    /// The same model with adapters beside its linear maps, as parameters of their own in the type
    /// that the model computes in. A score head among them replaces the model's own.
    ///
    /// Errors: as [`Self::assemble`].
    pub fn with_adapters(self, adapters: &Adapters, dropout: Dropout) -> Result<Self, String> {
        let model = match &adapters.score_head {
            Some(head) => self.with_score_head(head)?,
            None => self,
        };
        let mut parameters = model.parameters;
        for (name, matrix) in &adapters.matrices {
            let _no_grad = tch::no_grad_guard();
            let device = model.placement.of(name);
            let own = matrix.to_device(device).to_kind(model.options.precision.kind());
            parameters.push((name.clone(), own.copy().detach()));
        }
        let scaling = adapters.shape.scaling();
        let adapting = Adapting { scaling, dropout, switch: Arc::default() };
        Self::build(model.config, (model.options, model.placement), parameters, Some(adapting))
    }

    /// What all adapters of this model share; of a model without any, a switch of nothing.
    #[must_use]
    pub fn adapters(&self) -> &Switch {
        &self.switch
    }

    /// Every parameter under its Hugging Face name, in file order; a tied head is not listed twice.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Where ids come in, and with a single device all of it lives.
    #[must_use]
    pub fn device(&self) -> Device {
        self.placement.first()
    }

    /// Where hidden states come out, and logits and scores are made.
    #[must_use]
    pub fn head_device(&self) -> Device {
        self.placement.head()
    }

    /// Where each part lies.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// What it computes in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.options.precision
    }

    /// The embedding of ids `[rows, tokens]`: `[rows, tokens, width]`. As in transformers, no gradient
    /// reaches the row of the pad id from here, also where it is a stop id that texts hold (a tied
    /// head's gradient does reach it).
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        let pad = self.config.pad_id.filter(|pad| (*pad as usize) < self.config.vocabulary);
        let pad = pad.map(i64::from);
        if self.embedding.requires_grad() && self.device() == Device::Cpu {
            return in_place::embedding(&self.embedding, ids, pad);
        }
        Tensor::embedding(&self.embedding, ids, pad.unwrap_or(-1), false, false)
    }

    /// The blocks, from the bottom; with [`Self::embed`], [`Self::rope`] and [`Self::final_norm`]
    /// they are what [`Self::hidden`] is made of.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Rotation for trees of sequences that stand one after the other in a single row; see
    /// [`Self::hidden_packed`].
    #[must_use]
    pub fn rope_packed(&self, trees: &[Tree]) -> Ropes {
        Ropes::of(&self.ropes, |tables| tables.packed(trees))
    }

    /// Rotation for positions 0 to `tokens` − 1.
    #[must_use]
    pub fn rope(&self, tokens: i64) -> Ropes {
        Ropes::of(&self.ropes, |tables| tables.first(tokens))
    }

    /// Rotation for one position a row, all below `limit`.
    #[must_use]
    pub fn rope_at(&self, positions: &Tensor, limit: i64) -> Ropes {
        match self.ropes.as_slice() {
            [only] => Ropes::of(std::slice::from_ref(only), |tables| tables.at(positions, limit)),
            several => {
                Ropes::of(several, |tables| tables.at(&positions.to_device(tables.device()), limit))
            }
        }
    }

    /// The stream above the last block, on the head's device.
    pub fn left(&self, x: Tensor) -> Tensor {
        match self.placement.exit() {
            None => x,
            Some(device) => moved(&x, device),
        }
    }

    /// A gradient that comes from the head, on the device of the last block.
    pub fn re_entered(&self, gradient: Tensor) -> Tensor {
        match self.placement.re_entry() {
            None => gradient,
            Some(device) => moved(&gradient, device),
        }
    }

    /// The norm after the last block.
    pub fn final_norm(&self, hidden: &Tensor) -> Tensor {
        self.norm.forward(hidden)
    }

    /// Hidden states after the final norm: ids `[rows, tokens]` → `[rows, tokens, width]`. Causal;
    /// right padding needs no mask, since no real position sees what comes after it.
    pub fn hidden(&self, ids: &Tensor) -> Tensor {
        self.through(ids, &self.rope(ids.size()[1]))
    }

    /// Several sequences without padding: ids `[1, Σ lengths]`, one sequence after the other →
    /// `[1, Σ lengths, width]`. The same values as [`Self::hidden`] gives them one by one.
    pub fn hidden_packed(&self, ids: &Tensor, lengths: &[i64]) -> Tensor {
        let trees: Vec<Tree> = lengths.iter().map(|length| Tree::plain(*length)).collect();
        self.hidden_trees(ids, &trees)
    }

    /// The same for sequences that share their beginnings: ids `[1, Σ tokens]`, one tree after the
    /// other.
    pub fn hidden_trees(&self, ids: &Tensor, trees: &[Tree]) -> Tensor {
        self.through(ids, &self.rope_packed(trees))
    }

    fn through(&self, ids: &Tensor, ropes: &Ropes) -> Tensor {
        let mut x = self.embed(ids);
        for block in &self.blocks {
            x = block.forward(&x, ropes);
        }
        self.final_norm(&self.left(x))
    }

    /// [`Self::hidden_packed`], writing keys and values to the columns of `cache`, one sequence after
    /// the other.
    pub fn prefill(&self, ids: &Tensor, lengths: &[i64], cache: &mut KvCache) -> Tensor {
        let trees: Vec<Tree> = lengths.iter().map(|length| Tree::plain(*length)).collect();
        let ropes = self.rope_packed(&trees);
        let mut x = self.embed(ids);
        for (block, layer) in self.blocks.iter().zip(cache.layers()) {
            x = block.prefill(&x, &ropes, layer);
        }
        self.final_norm(&self.left(x))
    }

    /// One new id a row. `ids` and `positions`: `[rows]`, i64; returns `[rows, width]` after the
    /// norm. `column` and `mask` as [`super::attention::Step`] has them.
    pub fn decode(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        cache: &mut KvCache,
        column: i64,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let ropes = self.rope_at(positions, column + 1);
        // The mask is made on the first device.
        let others = self.placement.devices().get(1..).unwrap_or_default();
        let masks: Vec<Tensor> =
            mask.into_iter().flat_map(|mask| others.iter().map(|to| moved(mask, *to))).collect();
        let mut x = self.embed(&ids.unsqueeze(1));
        for (block, layer) in self.blocks.iter().zip(cache.layers()) {
            let mask = block.place.checked_sub(1).map_or(mask, |place| masks.get(place));
            x = block.decode(&x, layer, Step { rope: ropes.at(block.place), column, mask });
        }
        self.final_norm(&self.left(x)).squeeze_dim(1)
    }

    /// Logits in f32: `[.., width]` → `[.., vocabulary]`. Of a reward model: its hidden states, since
    /// it has no language head (callers check `config.head` before).
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        match &self.language_head {
            Some(head) => head.forward(hidden).to_kind(Kind::Float),
            None => hidden.to_kind(Kind::Float),
        }
    }

    /// Scores in f32: hidden states at the scored positions `[rows, width]` → `[rows]`. Of a policy:
    /// NaN, since it has no score head (callers check `config.head` before).
    pub fn scores(&self, hidden_at_last: &Tensor) -> Tensor {
        match &self.score_head {
            Some(head) => head.forward(hidden_at_last),
            None => Tensor::full(
                &hidden_at_last.size()[..1],
                f64::NAN,
                (Kind::Float, hidden_at_last.device()),
            ),
        }
    }
}

/// Whether a parameter learns.
fn learns(config: &ModelConfig, trainable: Trainable, name: &str) -> bool {
    match trainable {
        Trainable::Nothing => false,
        Trainable::Everything => true,
        Trainable::Adapters => name.ends_with(DOWN) || name.ends_with(UP) || name == SCORE,
        Trainable::TopBlocks(count) => {
            let layer = name
                .strip_prefix("model.layers.")
                .and_then(|rest| rest.split('.').next())
                .and_then(|layer| layer.parse::<usize>().ok());
            match layer {
                Some(layer) => layer + count >= config.layers,
                None => name == "model.norm.weight" || name == SCORE,
            }
        }
    }
}
