//! What the emulated orchestrator's policy says. In the kernel the programs that judge tell it themselves.

use lu_common::event::Kind;

use super::Handler;
use crate::attach::{Entry, Exit};
use crate::call::{self, Named};

/// `void lu_verdict(const struct task *, const struct judged *, const struct rule_name *, const char *session)`: what
/// is not a plain allow.
pub struct Verdict;

impl Handler for Verdict {
    fn entry<E: Entry>(entry: &E) {
        let Some(context) = call::begin::<E::Orchestrator>(Kind::Verdict, Some(entry.arg(0)), 0)
        else {
            return call::count_missing();
        };
        call::send_rule::<E::Orchestrator>(context, entry.flags(), entry.arg(2));
        // Of a session that was refused nobody has heard yet.
        let session = entry.arg(3);
        if session != 0 {
            let name = Some(Named::Text(session));
            call::set_session::<E::Orchestrator>(context, entry.flags(), name);
        }
        call::send_payload::<E::Orchestrator>(context, Kind::Verdict, entry.flags(), entry.arg(1));
        context.end(0);
    }

    fn exit<X: Exit>(_exit: &X) {}
}

/// `void lu_policy_loaded(const struct task *, const struct policy_loaded *)`.
pub struct PolicyLoaded;

impl Handler for PolicyLoaded {
    fn entry<E: Entry>(entry: &E) {
        let Some(context) = call::begin::<E::Orchestrator>(Kind::Policy, Some(entry.arg(0)), 0)
        else {
            return call::count_missing();
        };
        call::send_payload::<E::Orchestrator>(context, Kind::Policy, entry.flags(), entry.arg(1));
        context.end(0);
    }

    fn exit<X: Exit>(_exit: &X) {}
}
