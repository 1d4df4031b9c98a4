//! Temporary.
use aya::{EbpfLoader, VerifierLogLevel, programs::RawTracePoint};
fn main() {
    let object = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let mut e = EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).btf(None).load(&object).unwrap();
    let p: &mut RawTracePoint = e.program_mut("try_judge").unwrap().try_into().unwrap();
    match p.load() {
        Ok(()) => println!("{:?}", p.info().map(|i| i.verified_instruction_count())),
        Err(e) => { let t = format!("{e:?}"); println!("{}", &t[t.len().saturating_sub(3000)..]) }
    }
}
