//! The rules of the ioctl's structures, over a memory of the test's own.

use lu_common::uapi::v3;
use lu_user::emulate::argument::{Argument, UserMemory};
use nix::errno::Errno;
use proptest::prelude::*;
use std::cell::RefCell;

/// Bytes at address 4096; nothing else is there.
struct Memory(RefCell<Vec<u8>>);

const BASE: u64 = 4096;

impl Memory {
    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let end = start.checked_add(length).ok_or(Errno::EFAULT)?;
        if end > self.0.borrow().len() {
            return Err(Errno::EFAULT);
        }
        Ok(start..end)
    }
}

impl UserMemory for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(&self.0.borrow()[self.range(address, into.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let range = self.range(address, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

/// The rules again, said differently: what a `get_user` and a `copy_struct_from_user` would give.
fn expected(memory: &[u8], cmd: u32, address: u64) -> Result<(), Errno> {
    let sizes: [(u32, u32); 7] = [
        (16, 16),
        (16, 16),
        (16, 16),
        (8, 8),
        (8, 8),
        (24, 16),
        (16, 16),
    ];
    let Some((size, least)) = sizes.get((cmd & 0xff) as usize) else {
        return Err(Errno::EINVAL);
    };
    let byte = |offset: u64| {
        let at = address.wrapping_add(offset).wrapping_sub(BASE) as usize;
        memory.get(at).copied().ok_or(Errno::EFAULT)
    };
    let mut stated = 0_u32;
    for offset in 0..4 {
        stated |= u32::from(byte(offset)?) << (8 * offset);
    }
    if cmd & !0xff != 0xBA00 {
        return Err(Errno::ENOTTY);
    }
    if stated < *least {
        return Err(Errno::EINVAL);
    }
    // The tail, as far as it is there: whichever comes first, page by page.
    let mut offset = u64::from(*size);
    while offset < u64::from(stated) {
        let page_end = (address + offset) / 4096 * 4096 + 4096 - address;
        let end = page_end.min(u64::from(stated));
        let page: Result<Vec<u8>, Errno> = (offset..end).map(byte).collect();
        if page?.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        offset = end;
    }
    for offset in 0..u64::from(stated.min(*size)) {
        byte(offset)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_command_at_any_address_gets_the_documented_errno(
        cmd in prop_oneof![0xBA00_u32..0xBA09, any::<u32>()],
        address in prop_oneof![BASE - 8..BASE + 9000, any::<u64>()],
        size in prop_oneof![0_u32..40, 0_u32..9000, any::<u32>()],
        noise in prop::collection::vec((0_usize..8192, any::<u8>()), 0..3),
    ) {
        let mut bytes = vec![0_u8; 8192];
        for (at, byte) in noise {
            bytes[at] = byte;
        }
        let at = address.wrapping_sub(BASE) as usize;
        if let Some(place) = at.checked_add(4).and_then(|end| bytes.get_mut(at..end)) {
            place.copy_from_slice(&size.to_le_bytes());
        }
        let memory = Memory(RefCell::new(bytes.clone()));
        let got = Argument::read(&memory, &v3::COMMANDS, |_| true, cmd, address).map(drop);
        prop_assert_eq!(got, expected(&bytes, cmd, address));
    }
}

#[test]
fn a_result_is_written_no_further_than_the_caller_knows() {
    let mut bytes = vec![0xff_u8; 64];
    bytes[..16].copy_from_slice(&[16, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    let memory = Memory(RefCell::new(bytes));
    let mut argument =
        Argument::read(&memory, &v3::COMMANDS, |_| true, 0xBA05, BASE).expect("well-formed");
    assert_eq!(argument.long(8), 7);
    argument.set_word(16, 3);
    argument.write_back(&memory).expect("writable");
    assert_eq!(memory.0.borrow()[16..20], [0xff; 4]);
}
