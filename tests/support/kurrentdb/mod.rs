//! A fake of KurrentDB, since no real server can be had here.

#![allow(dead_code)] // Each test binary uses a part of it.

pub mod database;
pub mod protos;
pub mod server;
