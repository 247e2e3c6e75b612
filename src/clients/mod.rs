//! Connections to the servers that hold events, checkpoints and read models: one module a kind of server, which speaks its protocol and puts its
//! errors into words. Knows nothing of Projections.

pub mod postgres;
