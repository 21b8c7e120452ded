//! Errors that the driver reports by itself: Xids, and memory errors that could not be corrected.
//!
//! In: NVML's event set, on a thread of its own because waiting for it blocks. Out: [`DriverError`]s.
//! A driver without events is tolerated: then a lost device is met at the next look. May not enter:
//! what follows from an error (`crate::schedule`).

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};

use super::nvml::open;

/// Waits are short, so that the thread sees that it is not wanted any more.
const WAIT_MS: u32 = 500;
/// So many waits until the devices are registered anew: one may have come back.
const WAITS: u32 = 120;
/// Until a driver that is not there, or has no events, is tried again.
const PAUSE: Duration = Duration::from_secs(60);
/// What the driver calls a memory error that could not be corrected.
pub const ECC: u64 = 48;

/// Xids after which a GPU is not to be trusted until it was reset: uncorrected memory errors, a failed
/// row remapping, the link, the bus, the firmware. All others are told and leave the GPU in use: most are
/// a program's own, whose death says more. Source: NVIDIA's Xid catalogue.
const OF_HARDWARE: [u64; 9] = [ECC, 62, 64, 74, 79, 95, 119, 120, 140];

/// An error of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverError {
    /// The GPU's UUID, also where it is cut into slices.
    pub uuid: String,
    /// NVIDIA's number for it.
    pub xid: u64,
}

impl DriverError {
    /// Whether the GPU itself failed.
    #[must_use]
    pub fn is_of_hardware(&self) -> bool {
        OF_HARDWARE.contains(&self.xid)
    }
}

/// The thread; it ends when this is dropped.
pub struct Listening {
    _stop: Sender<()>,
}

/// Listens until the returned value is dropped.
pub fn listen(hear: impl Fn(DriverError) + Send + 'static) -> Listening {
    let (stop, stopped) = channel();
    let run = move || {
        while !is_stopped(&stopped, Duration::ZERO) {
            match hear_all(&hear, &stopped) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!("the driver tells no errors by itself: {error}");
                    if is_stopped(&stopped, PAUSE) {
                        return;
                    }
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("xids".into()).spawn(run) {
        tracing::warn!("the driver's errors are not listened to: {error}");
    }
    Listening { _stop: stop }
}

fn is_stopped(stopped: &Receiver<()>, wait: Duration) -> bool {
    stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
}

/// One registration's time.
///
/// Errors: the driver does not answer, or knows no events of any device.
fn hear_all(hear: &impl Fn(DriverError), stopped: &Receiver<()>) -> Result<(), NvmlError> {
    let nvml = open()?;
    let events = registered(&nvml)?;
    for _ in 0..WAITS {
        if is_stopped(stopped, Duration::ZERO) {
            return Ok(());
        }
        match events.wait(WAIT_MS) {
            Ok(event) => {
                let xid = match event.event_data {
                    Some(XidError::Value(xid)) => xid,
                    Some(XidError::Unknown) => 0,
                    None => ECC,
                };
                if let Ok(uuid) = event.device.uuid() {
                    hear(DriverError { uuid, xid });
                }
            }
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An event set with every device that has such events.
fn registered(nvml: &Nvml) -> Result<EventSet<'_>, NvmlError> {
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let mut found = Err(NvmlError::NotSupported);
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        let Ok(supported) = device.supported_event_types() else { continue };
        let types = supported & wanted;
        if types.is_empty() {
            continue;
        }
        let events = match found {
            Ok(events) => events,
            Err(_) => nvml.create_event_set()?,
        };
        // A refusal takes the set with it, and what was registered before.
        found = device.register_events(types, events).map_err(|refused| refused.error);
    }
    found
}
