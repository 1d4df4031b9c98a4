//! Temporary: a policy by hand.
use lu_common::policy::*;
use lu_user::enforce::Enforcer;
use zerocopy::FromZeros;
fn main() {
    let mut enforcer =
        Enforcer::new(std::env::args().any(|a| a == "persist")).unwrap_or_else(|e| panic!("{e}"));
    println!("attached, taken over {}", enforcer.taken_over);
    println!("self test {:?}", enforcer.self_test());
    let mut p = Policy::new_zeroed();
    p.requests = 1;
    p.deny = 1;
    p.enforce = 3;
    p.errno[0] = 13;
    p.errno[1] = 28;
    p.operations[Operation::Create as usize] = 1;
    p.conditional[Attribute::Session as usize] = 1;
    let n = Name::new(b"bad-");
    p.patterns[0] = Pattern {
        prefix: n.text,
        prefix_mask: Name::new(&[255; 4]).text,
        suffix: [0; 8],
        suffix_mask: [0; 8],
        least: 4,
        most: 63,
        rules: 1,
    };
    p.limits = 2;
    p.operations[Operation::Preserve as usize] = 2;
    p.quotas[0] = Quota {
        files: 2,
        bytes: 1 << 40,
        rule: 1,
        in_all: 0,
    };
    println!("generation {:?}", enforcer.apply(&p, [0; 32]));
    println!("device {:?}", std::fs::File::open("/dev/liveupdate"));
    let stop = lu_user::client::sessions::Device::open("/dev/liveupdate".as_ref()).unwrap();
    println!("create bad {:?}", stop.create("bad-1").err());
    let s = stop.create("good").unwrap();
    for token in 0..4 {
        let file = memfd(4096 * (token + 1));
        println!("preserve {token} {:?}", s.preserve(token, &file));
    }
    println!("account {:?}", enforcer.account());
    drop(s);
    println!(
        "account {:?} untold {:?}",
        enforcer.account(),
        enforcer.untold()
    );
    let f = enforcer.in_force().unwrap().unwrap();
    println!(
        "counts {:?} {:?} {:?}",
        f.counts[0], f.counts[1], f.counts[64]
    );
    let mut ring = enforcer.take_verdicts().unwrap();
    while let Some(item) = ring.next() {
        use zerocopy::FromBytes as _;
        let r = lu_common::event::Record::ref_from_bytes(&item).unwrap();
        let j: Judged = zerocopy::transmute!(r.call);
        println!("{:?} {} {:?}", r.kind(), r.header.pid, j);
    }
}
fn memfd(len: u64) -> std::fs::File {
    let f = std::fs::File::from(
        nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::empty()).unwrap(),
    );
    f.set_len(len).unwrap();
    f
}
