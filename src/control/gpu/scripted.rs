//! GPUs by a script, for tests: each look gives the next inventory, the last one for ever.

use std::sync::Mutex;
use std::sync::PoisonError;

use super::{GpuProbe, Inventory};

/// A probe that plays what it was given.
#[derive(Debug)]
pub struct ScriptedProbe(Mutex<Vec<Inventory>>);

impl ScriptedProbe {
    /// Plays `script` in order; an empty one is a machine without a driver.
    #[must_use]
    pub fn new(script: Vec<Inventory>) -> Self {
        Self(Mutex::new(script))
    }
}

impl GpuProbe for ScriptedProbe {
    fn look(&self) -> Inventory {
        let mut script = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if script.len() > 1 {
            return script.remove(0);
        }
        script.first().cloned().unwrap_or(Inventory::NoDriver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DeviceFact;

    #[test]
    fn the_last_inventory_stays() {
        let probe =
            ScriptedProbe::new(vec![Inventory::Gpus(vec![DeviceFact::cpu()]), Inventory::NoDriver]);
        assert!(matches!(probe.look(), Inventory::Gpus(_)));
        assert_eq!(probe.look(), Inventory::NoDriver);
        assert_eq!(probe.look(), Inventory::NoDriver);
    }
}
