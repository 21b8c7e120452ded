//! Keys and values of the positions that were computed already, in memory taken once a batch.
//!
//! In: keys and values by layer and column. Out: views of them. Each row's positions are consecutive
//! columns that end at a common one; a row that leaves gives its place to the last one. Nothing is
//! reallocated or concatenated while a batch is written. May not enter: attention, sampling.

use tch::{Kind, Tensor};

use super::config::ModelConfig;
use super::placement::Placement;

/// The cache of one layer: two tensors `[rows, kv_heads, columns, head_dim]`.
#[derive(Debug)]
pub struct LayerCache {
    key: Tensor,
    value: Tensor,
    rows: i64,
}

impl LayerCache {
    /// Writes `[rows, kv_heads, n, head_dim]` to the columns from `column` on.
    pub fn write(&mut self, column: i64, key: &Tensor, value: &Tensor) {
        let columns = key.size()[2];
        let target = |cache: &Tensor| cache.narrow(0, 0, self.rows).narrow(2, column, columns);
        target(&self.key).copy_(key);
        target(&self.value).copy_(value);
    }

    /// Views of `count` columns from `first` on.
    pub fn columns(&self, first: i64, count: i64) -> (Tensor, Tensor) {
        let view = |cache: &Tensor| cache.narrow(0, 0, self.rows).narrow(2, first, count);
        (view(&self.key), view(&self.value))
    }
}

/// The cache of all layers for one batch.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Where a prompt's keys and values go in the cache of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The first row.
    pub row: i64,
    /// How many rows get the same copy.
    pub copies: i64,
    /// The column just after the prompt's last.
    pub column_end: i64,
}

impl KvCache {
    /// Bytes that [`Self::new`] will take.
    #[must_use]
    pub fn bytes(config: &ModelConfig, rows: i64, columns: i64, kind: Kind) -> u64 {
        let position = (2 * config.layers * config.kv_heads * config.head_dim) as u64;
        let positions = rows.unsigned_abs().saturating_mul(columns.unsigned_abs());
        positions.saturating_mul(position).saturating_mul(kind.elt_size_in_bytes() as u64)
    }

    /// Zeroed memory for `rows` rows of `columns` columns. Zeroed because a masked column is still
    /// multiplied, by a weight of 0, and 0 times whatever lay in the memory may be NaN. Each layer's lies on
    /// the device of its block.
    #[must_use]
    pub fn new(
        config: &ModelConfig,
        (rows, columns): (i64, i64),
        kind: Kind,
        placement: &Placement,
    ) -> Self {
        let shape = [rows, config.kv_heads as i64, columns, config.head_dim as i64];
        let layer = |layer: usize| {
            let zeros = || Tensor::zeros(shape, (kind, placement.block(layer)));
            LayerCache { key: zeros(), value: zeros(), rows }
        };
        Self { layers: (0..config.layers).map(layer).collect() }
    }

    /// The layers, from the bottom.
    pub fn layers(&mut self) -> impl Iterator<Item = &mut LayerCache> {
        self.layers.iter_mut()
    }

    /// How many rows are in use.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.layers.first().map_or(0, |layer| layer.rows)
    }

    /// Row `row` leaves; the last row takes its place, with its columns up to `columns`.
    pub fn remove_row(&mut self, row: i64, columns: i64) {
        for layer in &mut self.layers {
            layer.rows -= 1;
            if row != layer.rows {
                for cache in [&layer.key, &layer.value] {
                    let of = |row: i64| cache.narrow(0, row, 1).narrow(2, 0, columns);
                    of(row).copy_(&of(layer.rows));
                }
            }
        }
    }

    /// Copies `tokens` columns of row 0 of `from`, from its column `first` on, into the rows of `to`,
    /// so that they end just before its column.
    pub fn place(&mut self, (from, first): (&Self, i64), tokens: i64, to: Place) {
        for (layer, source) in self.layers.iter_mut().zip(&from.layers) {
            let start = to.column_end - tokens;
            let copy = |cache: &Tensor, source: &Tensor| {
                let mut target = cache.narrow(0, to.row, to.copies).narrow(2, start, tokens);
                target.copy_(&source.narrow(0, 0, 1).narrow(2, first, tokens));
            };
            copy(&layer.key, &source.key);
            copy(&layer.value, &source.value);
        }
    }
}
