//! `[devices]`: what may be computed on, and when.
//!
//! In: an entry. Out: [`DevicesConfig`].

use std::path::Path;

use super::{Rows, get};
use crate::hours::Hours;
use crate::setting::Setting;
use crate::values::{Entry, Value};

/// Which devices may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UseDevices {
    /// Every GPU that NVML names, else the CPU.
    Auto,
    /// These: `cpu` (then alone), indices or UUIDs of GPUs.
    Named(Vec<String>),
}

/// `[devices]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicesConfig {
    /// The key `use`.
    pub use_devices: UseDevices,
    /// MiB of each GPU left free.
    pub reserve_mib: u64,
    /// No new unit above it; 0: no limit.
    pub temperature_max_c: u32,
    /// Nothing is computed then.
    pub quiet_hours: Vec<Hours>,
    /// A GPU is left where others use more of it; 0: never.
    pub yield_above_mib: u64,
    /// It is taken again after it was free for so long.
    pub yield_for_s: u64,
    /// Between two looks at the devices.
    pub look_ms: u64,
}

impl DevicesConfig {
    pub(crate) fn of(entry: &Entry, base_dir: &Path) -> Option<Self> {
        let use_devices = match entry.value("use")? {
            Value::Text(_) => UseDevices::Auto,
            Value::Texts(names) => UseDevices::Named(names.clone()),
            _ => return None,
        };
        let Value::Texts(quiet) = entry.value("quiet_hours")? else { return None };
        Some(Self {
            use_devices,
            reserve_mib: get(entry, "reserve_mib", base_dir)?,
            temperature_max_c: get(entry, "temperature_max_c", base_dir)?,
            quiet_hours: quiet.iter().map(|text| Hours::parse(text)).collect::<Option<_>>()?,
            yield_above_mib: get(entry, "yield_above_mib", base_dir)?,
            yield_for_s: get(entry, "yield_for_s", base_dir)?,
            look_ms: get(entry, "look_ms", base_dir)?,
        })
    }

    pub(crate) fn values(&self) -> Rows {
        let use_devices = match &self.use_devices {
            UseDevices::Auto => Value::Text("auto".to_owned()),
            UseDevices::Named(names) => Value::Texts(names.clone()),
        };
        let quiet = self.quiet_hours.iter().map(ToString::to_string).collect();
        vec![
            ("use", Some(use_devices)),
            ("reserve_mib", self.reserve_mib.value()),
            ("temperature_max_c", self.temperature_max_c.value()),
            ("quiet_hours", Some(Value::Texts(quiet))),
            ("yield_above_mib", self.yield_above_mib.value()),
            ("yield_for_s", self.yield_for_s.value()),
            ("look_ms", self.look_ms.value()),
        ]
    }
}
