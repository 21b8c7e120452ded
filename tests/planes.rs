//! The rule of the two planes.
