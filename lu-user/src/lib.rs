//! See, bound and prove a Linux live update.

pub mod emulate;
