//! Leases and devices: which worker process had which devices, from when to when.
//!
//! In: what the scheduler and NVML say. Out: rows of `leases` and `devices`. May not enter: placement.

use rlhfd_domain::device::DeviceSeen;
use rlhfd_domain::{LeaseId, Stage};
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::rows::{count, int};

/// An open lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its row.
    pub id: LeaseId,
    /// The stage that it was given for.
    pub stage: String,
    /// JSON: the UUIDs of its devices.
    pub devices: String,
    /// The worker's process id.
    pub pid: Option<u32>,
    /// Version and libtorch, from the worker's hello.
    pub worker: Option<String>,
    /// Since when.
    pub started_ms: i64,
}

/// A row of `devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The GPU's UUID, or `cpu`.
    pub uuid: String,
    /// `cpu` or `cuda`.
    pub kind: String,
    /// What a person calls it.
    pub name: String,
    /// All of its memory.
    pub memory_mib: Option<u64>,
    /// Whether it is there now.
    pub present: bool,
    /// When it was last seen.
    pub seen_ms: i64,
}

impl Reader {
    /// Leases that are open.
    pub fn open_leases(&self) -> Result<Vec<Lease>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT id, stage, devices, pid, worker, started_ms FROM leases
             WHERE ended_ms IS NULL ORDER BY id LIMIT 1000",
        )?;
        let rows = statement
            .query_map([], |row| {
                Ok(Lease {
                    id: LeaseId(row.get(0)?),
                    stage: row.get(1)?,
                    devices: row.get(2)?,
                    pid: row.get(3)?,
                    worker: row.get(4)?,
                    started_ms: row.get(5)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// All devices that were ever seen.
    pub fn devices(&self) -> Result<Vec<DeviceRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT uuid, kind, name, memory_mib, present, seen_ms FROM devices
             ORDER BY id LIMIT 1000",
        )?;
        let rows = statement
            .query_map([], |row| {
                Ok(DeviceRow {
                    uuid: row.get(0)?,
                    kind: row.get(1)?,
                    name: row.get(2)?,
                    memory_mib: row.get::<_, Option<i64>>(3)?.map(count),
                    present: row.get(4)?,
                    seen_ms: row.get(5)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }
}

impl Store {
    /// Opens a lease on devices. The worker's process does not run yet.
    pub fn open_lease(&mut self, stage: Stage, uuids: &[String], now_ms: i64) -> Result<LeaseId> {
        let devices = serde_json::Value::from(uuids.to_vec()).to_string();
        self.transact(|conn| {
            conn.execute(
                "INSERT INTO leases (stage, devices, started_ms) VALUES (?1, ?2, ?3)",
                params![stage.label(), devices, now_ms],
            )?;
            Ok(LeaseId(conn.last_insert_rowid()))
        })
    }

    /// The worker's process runs, and said what it is.
    pub fn lease_hello(&mut self, lease: LeaseId, pid: Option<u32>, worker: &str) -> Result<()> {
        self.transact(|conn| {
            conn.execute(
                "UPDATE leases SET pid = ?2, worker = ?3 WHERE id = ?1",
                params![lease.get(), pid, worker],
            )?;
            Ok(())
        })
    }

    /// Ends a lease. Units that ran on it are ended on their own.
    pub fn close_lease(&mut self, lease: LeaseId, cause: &str, now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            conn.execute(
                "UPDATE leases SET ended_ms = ?2, end_cause = ?3 WHERE id = ?1 AND ended_ms IS NULL",
                params![lease.get(), now_ms, cause],
            )?;
            Ok(())
        })
    }

    /// Keeps which devices are there now.
    pub fn record_devices(&mut self, seen: &[DeviceSeen], now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            conn.execute("UPDATE devices SET present = 0 WHERE present = 1", [])?;
            for device in seen {
                conn.execute(
                    "INSERT INTO devices (uuid, kind, name, memory_mib, present, seen_ms)
                     VALUES (?1, ?2, ?3, ?4, 1, ?5)
                     ON CONFLICT (uuid) DO UPDATE SET kind = excluded.kind, name = excluded.name,
                         memory_mib = excluded.memory_mib, present = 1, seen_ms = excluded.seen_ms",
                    params![
                        device.uuid,
                        device.kind.label(),
                        device.name,
                        device.memory.map(|mib| int(mib.0)),
                        now_ms
                    ],
                )?;
            }
            Ok(())
        })
    }
}

/// At start: no worker outlives the daemon. Returns how many were open.
pub(crate) fn close_all(conn: &Connection, cause: &str, now_ms: i64) -> Result<u64> {
    let closed = conn.execute(
        "UPDATE leases SET ended_ms = ?1, end_cause = ?2 WHERE ended_ms IS NULL",
        params![now_ms, cause],
    )?;
    Ok(closed as u64)
}
