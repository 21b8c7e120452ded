//! The devices' timeline: what was seen of them, what was decided, and why.
//!
//! In: what changed. Out: rows, the oldest of which go in the end. May not enter: the decision.

use rlhfd_domain::{UnitId, limits};
use rusqlite::{Connection, Row, params};

use crate::error::Result;
use crate::open::{Reader, Store};
use crate::rows::{int, limit, message};

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeviceEvent {
    /// The UUID, `cpu`, or `driver`.
    pub device: String,
    /// A word that SQL can group by.
    pub kind: String,
    /// What was seen.
    pub seen: String,
    /// What follows.
    pub decision: String,
    /// Why.
    pub reason: String,
    /// The lease's row that it touches.
    pub lease: Option<i64>,
    /// The unit that it touches.
    pub unit: Option<UnitId>,
}

/// A row of `device_events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEventRow {
    /// When.
    pub at_ms: i64,
    /// What.
    pub event: NewDeviceEvent,
}

fn read(row: &Row<'_>) -> rusqlite::Result<DeviceEventRow> {
    Ok(DeviceEventRow {
        at_ms: row.get(0)?,
        event: NewDeviceEvent {
            device: row.get(1)?,
            kind: row.get(2)?,
            seen: row.get(3)?,
            decision: row.get(4)?,
            reason: row.get(5)?,
            lease: row.get(6)?,
            unit: row.get::<_, Option<i64>>(7)?.map(UnitId),
        },
    })
}

/// A unit ran out of memory on its lease's device, or on one of several.
pub(crate) fn out_of_memory(
    conn: &Connection,
    unit: UnitId,
    together: u64,
    why: &str,
    now_ms: i64,
) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO device_events (at_ms, device, kind, seen, decision, reason, lease_id, unit_id)
         SELECT ?2, device.value, 'out_of_memory', ?3, ?4, 'half the batch, until one item',
                last.lease, last.unit_id
         FROM (SELECT l.id AS lease, a.unit_id, coalesce(l.devices, '[\"cpu\"]') AS devices
               FROM attempts a LEFT JOIN leases l ON l.id = a.lease_id
               WHERE a.unit_id = ?1 ORDER BY a.number DESC LIMIT 1) last,
              json_each(last.devices) device",
    )?
    .execute(params![
        unit.get(),
        now_ms,
        message(why),
        format!("try again with {together} at once")
    ])?;
    Ok(())
}

impl Reader {
    /// The newest rows, oldest of them first.
    pub fn device_events(&self, rows: u32) -> Result<Vec<DeviceEventRow>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT at_ms, device, kind, seen, decision, reason, lease_id, unit_id
             FROM device_events ORDER BY id DESC LIMIT ?1",
        )?;
        let mut rows =
            statement.query_map([limit(rows)], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
        rows.reverse();
        Ok(rows)
    }
}

impl Store {
    /// Appends to the timeline, and lets its oldest rows go.
    pub fn tell_devices(&mut self, events: &[NewDeviceEvent], now_ms: i64) -> Result<()> {
        self.transact(|conn| {
            let mut statement = conn.prepare_cached(
                "INSERT INTO device_events
                     (at_ms, device, kind, seen, decision, reason, lease_id, unit_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            for event in events {
                statement.execute(params![
                    now_ms,
                    event.device,
                    event.kind,
                    message(&event.seen),
                    event.decision,
                    message(&event.reason),
                    event.lease,
                    event.unit.map(UnitId::get),
                ])?;
            }
            conn.execute(
                "DELETE FROM device_events WHERE id <= (SELECT max(id) FROM device_events) - ?1",
                [int(limits::DEVICE_EVENTS_MAX)],
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seen: String) -> NewDeviceEvent {
        NewDeviceEvent {
            device: "GPU-a".into(),
            kind: "hot".into(),
            seen,
            decision: "no new unit".into(),
            reason: "above the limit".into(),
            lease: Some(3),
            unit: None,
        }
    }

    #[test]
    fn the_newest_rows_stay_and_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let many: Vec<_> =
            (0..limits::DEVICE_EVENTS_MAX + 5).map(|n| event(format!("{n} °C"))).collect();
        store.tell_devices(&many, 7).unwrap();
        let count: i64 = store
            .conn_mut()
            .query_row("SELECT count(*) FROM device_events", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, int(limits::DEVICE_EVENTS_MAX));
        let last = store.device_events(2).unwrap();
        let seen: Vec<&str> = last.iter().map(|row| row.event.seen.as_str()).collect();
        assert_eq!(seen, ["50003 °C", "50004 °C"]);
        assert_eq!(last[0].event, event("50003 °C".into()));
    }
}
