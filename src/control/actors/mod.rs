//! The actors of the daemon, and the messages between them.
//!
//! ```text
//!  listener ──Order──▶ iteration ──Consider──▶ scheduler ──Open──▶ supervisor ──▶ worker ◀─frames─▶ child
//!                        │  ▲                     │  ▲                              │
//!                        │  └── Nudge ────────────┼──┴─ LeaseOpened, UnitEnded, … ──┤
//!                        └──── Perform ───────────┴───▶ generation, labelling, pairing, training,
//!                                                       evaluation ──Write──▶ store
//! ```
//! All but the store live on the main thread, because a child dies with the thread that spawned it.
//! Memory is a cache: whatever an actor knows is made anew from the database after a start.
//! May not enter: SQL, HTTP.

pub mod attempts;
pub mod evaluation;
pub mod generation;
pub mod iteration;
pub mod labelling;
pub mod pairing;
pub mod scheduler;
pub mod stage;
pub mod store;
pub mod supervisor;
pub mod teller;
pub mod training;
pub mod worker;
