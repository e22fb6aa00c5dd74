//! The parts that model crates share.
