//! What needs the operator to itself: tests that kill, upgrade or remove it, or that count what it says.

mod certificates;
mod contract;
mod delegate;
mod installation;
mod operator_faults;
mod registration;
