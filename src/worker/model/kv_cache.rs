//! Keys and values of the positions that were computed already, in memory taken once a batch.
//!
//! In: keys and values by layer and column. Out: views of them. Each row's positions are consecutive
//! columns that end at a common one; nothing is reallocated or concatenated while a batch is written.
//! May not enter: attention, sampling.

use tch::{Device, Kind, Tensor};

use super::config::ModelConfig;

/// The cache of one layer: two tensors `[rows, kv_heads, columns, head_dim]`.
#[derive(Debug)]
pub struct LayerCache {
    key: Tensor,
    value: Tensor,
}

impl LayerCache {
    /// Writes `[rows, kv_heads, n, head_dim]` to the columns from `column` on.
    pub fn write(&mut self, column: i64, key: &Tensor, value: &Tensor) {
        let columns = key.size()[2];
        self.key.narrow(2, column, columns).copy_(key);
        self.value.narrow(2, column, columns).copy_(value);
    }

    /// Views of `count` columns from `first` on.
    #[must_use]
    pub fn columns(&self, first: i64, count: i64) -> (Tensor, Tensor) {
        (self.key.narrow(2, first, count), self.value.narrow(2, first, count))
    }
}

/// The cache of all layers for one batch.
#[derive(Debug)]
pub struct KvCache {
    /// By layer, from the bottom.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Zeroed memory for `rows` rows of `columns` columns. Zeroed because a masked column is still
    /// multiplied, by a weight of 0, and 0 times whatever lay in the memory may be NaN.
    #[must_use]
    pub fn new(config: &ModelConfig, rows: i64, columns: i64, kind: Kind, device: Device) -> Self {
        let shape = [rows, config.kv_heads as i64, columns, config.head_dim as i64];
        let zeros = || Tensor::zeros(shape, (kind, device));
        let layer = |_| LayerCache { key: zeros(), value: zeros() };
        Self { layers: (0..config.layers).map(layer).collect() }
    }

    /// Keeps these rows only, in this order. `rows`: `[kept]`, i64.
    pub fn keep_rows(&mut self, rows: &Tensor) {
        for layer in &mut self.layers {
            layer.key = layer.key.index_select(0, rows);
            layer.value = layer.value.index_select(0, rows);
        }
    }

    /// Copies the first `tokens` columns of `row` of `from` into `copies` rows from `row_to` on,
    /// so that they end just before `column_end`.
    pub fn place(&mut self, from: &Self, row: i64, tokens: i64, to: Place) {
        for (layer, source) in self.layers.iter_mut().zip(&from.layers) {
            let (key, value) = source.columns(0, tokens);
            let start = to.column_end - tokens;
            let target =
                |cache: &Tensor| cache.narrow(0, to.row, to.copies).narrow(2, start, tokens);
            target(&layer.key).copy_(&key.narrow(0, row, 1));
            target(&layer.value).copy_(&value.narrow(0, row, 1));
        }
    }
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
