//! Devices: what is there to compute on, and how it fares.
//!
//! In: NVML, or a script in tests. Out: [`DeviceFact`]s, and the errors that the driver reports by
//! itself. Without a driver there is one device, the CPU; that is a fact, not an error. May not enter:
//! what to do with a device (`crate::schedule`).

pub mod nvml;
pub mod scripted;
pub mod xids;

/// The name by which the CPU stands in tables and leases.
pub const CPU: &str = "cpu";

/// One device as it is now. What a device does not say is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceFact {
    /// The UUID of the GPU, or of the MIG slice; or [`CPU`].
    pub uuid: String,
    /// For people.
    pub name: String,
    /// Of a MIG slice: the UUID of the GPU that it is part of.
    pub slice_of: Option<String>,
    /// The driver's version.
    pub driver: Option<String>,
    /// All of its memory; none for the CPU.
    pub memory_mib: Option<u64>,
    /// What all processes together use now.
    pub memory_used_mib: Option<u64>,
    /// What nobody uses now.
    pub memory_free_mib: Option<u64>,
    /// How busy it is, in per cent.
    pub utilisation_percent: Option<u32>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Watts.
    pub power_w: Option<u32>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Why it cannot be used, where it cannot.
    pub fault: Option<Fault>,
}

/// What is wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It does not answer now, which may pass.
    Silent(String),
    /// It is gone: nothing on it computes any more.
    Lost(String),
    /// The driver as a whole does not answer. What computes may go on (a driver that was upgraded
    /// serves those that it serves already); nothing new can begin.
    Driver(String),
}

impl Fault {
    /// What was said.
    #[must_use]
    pub fn words(&self) -> &str {
        match self {
            Self::Silent(words) | Self::Lost(words) | Self::Driver(words) => words,
        }
    }
}

impl DeviceFact {
    /// The CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self { uuid: CPU.into(), name: "CPU".into(), ..Self::default() }
    }

    /// Whether it is a GPU, or a slice of one.
    #[must_use]
    pub fn is_cuda(&self) -> bool {
        self.uuid != CPU
    }
}

/// What a look at the GPUs gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Inventory {
    /// There is no driver: an ordinary machine without a GPU.
    NoDriver,
    /// The driver is there and cannot be spoken to.
    DriverFault(String),
    /// These GPUs; possibly none.
    Gpus(Vec<DeviceFact>),
}

/// Looks at the GPUs. It may block: call it on the blocking pool.
pub trait GpuProbe: Send + Sync + 'static {
    /// What is there now.
    fn look(&self) -> Inventory;
}

/// The devices that a configuration's `[devices] use` names, out of what was found.
///
/// `auto` is every GPU, or the CPU where there is none; a list names `cpu`, UUIDs or indices. Beside
/// the devices: the entries that name nothing that is there.
pub fn choose(wanted: &[String], inventory: &Inventory) -> (Vec<DeviceFact>, Vec<String>) {
    let gpus: &[DeviceFact] = match inventory {
        Inventory::Gpus(gpus) => gpus,
        Inventory::NoDriver | Inventory::DriverFault(_) => &[],
    };
    if wanted.is_empty() || wanted == ["auto"] {
        let all = if gpus.is_empty() { vec![DeviceFact::cpu()] } else { gpus.to_vec() };
        return (all, Vec::new());
    }
    let mut chosen: Vec<DeviceFact> = Vec::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for entry in wanted {
        let found = if entry == CPU {
            Some(DeviceFact::cpu())
        } else {
            entry
                .parse::<usize>()
                .ok()
                .and_then(|index| gpus.get(index))
                .or_else(|| gpus.iter().find(|gpu| gpu.uuid == *entry))
                .cloned()
        };
        match found {
            Some(device) if chosen.iter().all(|other| other.uuid != device.uuid) => {
                chosen.push(device);
            }
            Some(_) => {}
            None => missing.push(entry.clone()),
        }
    }
    (chosen, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(uuid: &str) -> DeviceFact {
        DeviceFact { uuid: uuid.into(), ..DeviceFact::cpu() }
    }

    #[test]
    fn auto_is_every_gpu_and_without_one_the_cpu() {
        let auto = ["auto".to_owned()];
        assert_eq!(choose(&auto, &Inventory::NoDriver).0, [DeviceFact::cpu()]);
        let two = Inventory::Gpus(vec![gpu("GPU-a"), gpu("GPU-b")]);
        assert_eq!(choose(&auto, &two).0.len(), 2);
    }

    #[test]
    fn a_gpu_is_named_by_index_or_uuid_and_one_that_is_not_there_is_told() {
        let two = Inventory::Gpus(vec![gpu("GPU-a"), gpu("GPU-b")]);
        let named = ["1".to_owned(), "GPU-b".to_owned()];
        assert_eq!(choose(&named, &two), (vec![gpu("GPU-b")], Vec::new()));
        let wrong = ["GPU-c".to_owned(), "GPU-a".to_owned()];
        assert_eq!(choose(&wrong, &two), (vec![gpu("GPU-a")], vec!["GPU-c".to_owned()]));
    }
}
