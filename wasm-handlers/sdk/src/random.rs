//! Chance; in a test, numbers that are the same each time.

/// Bytes that nobody can guess.
pub fn bytes<const N: usize>() -> [u8; N] {
    #[cfg(target_family = "wasm")]
    {
        let mut bytes = [0; N];
        let random = wasip2::random::random::get_random_bytes(N as u64);
        bytes.iter_mut().zip(random).for_each(|(to, from)| *to = from);
        bytes
    }
    #[cfg(not(target_family = "wasm"))]
    crate::fake::random()
}

/// A UUID of version 4.
pub fn uuid() -> String {
    let mut bytes = bytes::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let part = |from: usize, to: usize| bytes[from..to].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}-{}-{}-{}-{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16))
}
