//! What the comparisons of ways to scale have in common: the traces, what else there is to scale by, and perfect foresight. `make bench-scaling` plays
//! them in the simulator, `make bench-workers` on a cluster.

pub mod foresight;
pub mod rivals;
pub mod traces;
