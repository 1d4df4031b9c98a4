//! Shared by the BPF programs and the user-space library, which both compile this code: the orchestrator's two
//! interfaces ([`uapi`]) and the record that a hook sends ([`event`]). No allocation, no I/O.
#![no_std]

pub mod event;
pub mod uapi;
