//! Devices: what is there to compute on, and how it fares.
//!
//! In: NVML, or a script in tests. Out: [`DeviceFact`]s. Without a driver there is one device, the
//! CPU; that is a fact, not an error. May not enter: what to do with a device (`crate::schedule`).

pub mod nvml;
pub mod scripted;

/// The name by which the CPU stands in tables and leases.
pub const CPU: &str = "cpu";

/// One device as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFact {
    /// The GPU's UUID, or [`CPU`].
    pub uuid: String,
    /// For people.
    pub name: String,
    /// All of its memory; none for the CPU.
    pub memory_mib: Option<u64>,
    /// What nobody uses now.
    pub memory_free_mib: Option<u64>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Why it cannot be used, where it cannot.
    pub fault: Option<String>,
}

impl DeviceFact {
    /// The CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            uuid: CPU.into(),
            name: "CPU".into(),
            memory_mib: None,
            memory_free_mib: None,
            temperature_c: None,
            fault: None,
        }
    }

    /// Whether it is a GPU.
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
/// `auto` is every GPU, or the CPU where there is none; a list names `cpu`, UUIDs or indices.
///
/// Errors: the entries that name nothing that is there.
pub fn choose(wanted: &[String], inventory: &Inventory) -> Result<Vec<DeviceFact>, Vec<String>> {
    let gpus: &[DeviceFact] = match inventory {
        Inventory::Gpus(gpus) => gpus,
        Inventory::NoDriver | Inventory::DriverFault(_) => &[],
    };
    if wanted.is_empty() || wanted == ["auto"] {
        return Ok(if gpus.is_empty() { vec![DeviceFact::cpu()] } else { gpus.to_vec() });
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
    if missing.is_empty() { Ok(chosen) } else { Err(missing) }
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
        assert_eq!(choose(&auto, &Inventory::NoDriver).unwrap(), [DeviceFact::cpu()]);
        let two = Inventory::Gpus(vec![gpu("GPU-a"), gpu("GPU-b")]);
        assert_eq!(choose(&auto, &two).unwrap().len(), 2);
    }

    #[test]
    fn a_gpu_is_named_by_index_or_uuid_and_one_that_is_not_there_is_told() {
        let two = Inventory::Gpus(vec![gpu("GPU-a"), gpu("GPU-b")]);
        let named = ["1".to_owned(), "GPU-b".to_owned()];
        assert_eq!(choose(&named, &two).unwrap(), [gpu("GPU-b")]);
        let wrong = ["GPU-c".to_owned(), "cpu".to_owned()];
        assert_eq!(choose(&wrong, &two), Err(vec!["GPU-c".to_owned()]));
    }
}
