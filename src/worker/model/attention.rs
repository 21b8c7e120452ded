//! Grouped-query attention, once over whole sequences and once for a single new position.
//!
//! In: `[rows, tokens, width]`, a [`Rope`], for decoding a [`LayerCache`]. Out: the same shape. Rows
//! are padded at the right: a causal mask alone keeps padding from every real position. Packed rows
//! hold several sequences without any padding; each attends to itself. While decoding, rows end at a
//! common column and begin at different ones; a mask hides what lies before.
//! May not enter: sampling, the MLP, batch planning.

use tch::Tensor;

use super::kv_cache::LayerCache;
use super::layers::{Linear, RmsNorm};
use super::rotary::{Rope, Tree};
use crate::one_pass;

/// Sizes that the attention of one layer needs.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Size of a head.
    pub head_dim: i64,
    /// How many last positions are seen; `None` is all.
    pub window: Option<i64>,
    /// Whether query and key are rotated in this layer.
    pub rotated: bool,
}

/// The attention of one block.
#[derive(Debug)]
pub struct Attention {
    /// Sizes.
    pub shape: AttentionShape,
    /// Query projection.
    pub query: Linear,
    /// Key projection.
    pub key: Linear,
    /// Value projection.
    pub value: Linear,
    /// The three as one map, in a model that does not learn.
    pub joined: Option<Linear>,
    /// Output projection.
    pub output: Linear,
    /// Norms of query and key by head, in the families that have them.
    pub norms: Option<(RmsNorm, RmsNorm)>,
}

/// Where a decoding step stands; see [`Attention::decode`].
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Rotation by row.
    pub rope: &'a Rope,
    /// The column that the new position is written to.
    pub column: i64,
    /// `[rows, 1, 1, column + 1]`, −∞ where a row has nothing yet; `None` where every row begins at
    /// column 0.
    pub mask: Option<&'a Tensor>,
}

/// Queries, keys and values by head: `[rows, heads, tokens, head_dim]`, rotated.
struct Heads {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

impl Attention {
    /// Whole sequences, causal.
    pub fn forward(&self, x: &Tensor, rope: &Rope) -> Tensor {
        self.attend(x, &self.project(x, rope), &rope.packed)
    }

    /// The same, and writes keys and values of all positions into `cache` from column 0 on.
    pub fn prefill(&self, x: &Tensor, rope: &Rope, cache: &mut LayerCache) -> Tensor {
        let heads = self.project(x, rope);
        cache.write(0, &heads.key, &heads.value);
        self.attend(x, &heads, &rope.packed)
    }

    /// One new position a row, `[rows, 1, width]`, attending to all columns up to its own.
    pub fn decode(&self, x: &Tensor, cache: &mut LayerCache, step: Step<'_>) -> Tensor {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let rows = x.size()[0];
        let new = self.project(x, step.rope);
        cache.write(step.column, &new.key, &new.value);
        let end = step.column + 1;
        let first = window.map_or(0, |window| (end - window).max(0));
        let (key, value) = cache.columns(first, end - first);
        // The heads of one group stand as that many queries before their one key head, so nothing
        // is repeated.
        let query = new.query.reshape([rows, kv_heads, heads / kv_heads, head_dim]);
        let mask = step.mask.map(|mask| mask.narrow(3, first, end - first));
        let mixed = one_pass::attended(&query, &key, &value, mask.as_ref()).unwrap_or_else(|| {
            Tensor::scaled_dot_product_attention(
                &query, &key, &value, mask, 0.0, false, None, false,
            )
        });
        self.output.forward(&mixed.reshape([rows, 1, heads * head_dim]))
    }

    fn project(&self, x: &Tensor, rope: &Rope) -> Heads {
        let AttentionShape { heads, kv_heads, head_dim, rotated, .. } = self.shape;
        let (rows, tokens) = (x.size()[0], x.size()[1]);
        let split =
            |linear: &Linear, heads: i64| linear.forward(x).view([rows, tokens, heads, head_dim]);
        let by_head = |x: Tensor| x.transpose(1, 2);
        if let (Some(joined), None) = (&self.joined, &self.norms) {
            let all = split(joined, heads + 2 * kv_heads);
            let turned = all.narrow(2, 0, heads + kv_heads);
            let turned = if rotated { rope.rotate(&turned) } else { turned };
            return Heads {
                query: by_head(turned.narrow(2, 0, heads)),
                key: by_head(turned.narrow(2, heads, kv_heads)),
                value: by_head(all.narrow(2, heads + kv_heads, kv_heads)),
            };
        }
        let (mut query, mut key) = (split(&self.query, heads), split(&self.key, kv_heads));
        if let Some((query_norm, key_norm)) = &self.norms {
            (query, key) = (query_norm.forward(&query), key_norm.forward(&key));
        }
        if rotated {
            (query, key) = (rope.rotate(&query), rope.rotate(&key));
        }
        let value = split(&self.value, kv_heads);
        Heads { query: by_head(query), key: by_head(key), value: by_head(value) }
    }

    /// `[rows, tokens, width]` from the heads; `packed` cuts the tokens of a single row.
    fn attend(&self, x: &Tensor, heads: &Heads, packed: &[Tree]) -> Tensor {
        let (rows, tokens) = (x.size()[0], x.size()[1]);
        let width = self.shape.heads * self.shape.head_dim;
        if packed.iter().all(|tree| tree.branches.is_empty()) && packed.len() < 2 {
            let mixed = self.mix(&heads.query, &heads.key, &heads.value);
            return self.output.forward(&mixed.transpose(1, 2).reshape([rows, tokens, width]));
        }
        let mixed = self.attend_trees(heads, packed);
        let parts: Vec<Tensor> = mixed.iter().map(|mixed| mixed.transpose(1, 2)).collect();
        self.output.forward(&Tensor::cat(&parts, 1).reshape([rows, tokens, width]))
    }

    /// Trees, one after the other: of each the trunk with its first branch, as the one sequence that they
    /// are, then every other branch over the trunk and itself. Split once: the backward pass of a `narrow`
    /// fills a tensor of the whole row, so that many short sequences would cost their number times the row.
    fn attend_trees(&self, heads: &Heads, trees: &[Tree]) -> Vec<Tensor> {
        let lengths: Vec<i64> = trees.iter().flat_map(Tree::sequences).collect();
        let split = |x: &Tensor| x.split_with_sizes(&lengths, 2);
        let (queries, keys, values) = (split(&heads.query), split(&heads.key), split(&heads.value));
        let mut mixed = Vec::with_capacity(lengths.len());
        for tree in trees {
            let lead = mixed.len();
            mixed.push(self.mix(&queries[lead], &keys[lead], &values[lead]));
            for branch in lead + 1..lead + tree.branches.len().max(1) {
                let seen = |all: &[Tensor]| {
                    Tensor::cat(
                        &[all[lead].narrow(2, 0, tree.trunk), all[branch].shallow_clone()],
                        2,
                    )
                };
                mixed.push(self.mix_branch(&queries[branch], &seen(&keys), &seen(&values)));
            }
        }
        mixed
    }

    /// A branch's queries over its trunk's keys and its own, which are the last ones.
    fn mix_branch(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let trunk = key.size()[2] - query.size()[2];
        let mask = branch_mask(query, trunk, self.shape.window);
        let groups = self.shape.heads != self.shape.kv_heads;
        let mask = Some(mask);
        Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, false, None, groups)
    }

    /// Causal attention of `[rows, heads, tokens, head_dim]`.
    fn mix(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let tokens = query.size()[2];
        let groups = self.shape.heads != self.shape.kv_heads;
        let window = self.shape.window.filter(|window| *window < tokens);
        let mask = window.map(|window| window_mask(query, tokens, window));
        let causal = mask.is_none();
        Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, causal, None, groups)
    }
}

/// `[tokens, tokens]`: 0 where a position is seen, −∞ where it lies ahead or outside the window.
fn window_mask(like: &Tensor, tokens: i64, window: i64) -> Tensor {
    let ones = Tensor::ones([tokens, tokens], (tch::Kind::Bool, like.device()));
    let hidden = ones.triu(1).logical_or(&ones.tril(-window));
    Tensor::zeros([tokens, tokens], (like.kind(), like.device()))
        .masked_fill(&hidden, f64::NEG_INFINITY)
}

/// `[tokens, trunk + tokens]` of a branch's queries: 0 where a key is seen, −∞ where it lies ahead or
/// outside the window.
fn branch_mask(query: &Tensor, trunk: i64, window: Option<i64>) -> Tensor {
    let tokens = query.size()[2];
    let shape = [tokens, trunk + tokens];
    let ones = Tensor::ones(shape, (tch::Kind::Bool, query.device()));
    let ahead = ones.triu(trunk + 1);
    let hidden = match window {
        Some(window) => ahead.logical_or(&ones.tril(trunk - window)),
        None => ahead,
    };
    Tensor::zeros(shape, (query.kind(), query.device())).masked_fill(&hidden, f64::NEG_INFINITY)
}
