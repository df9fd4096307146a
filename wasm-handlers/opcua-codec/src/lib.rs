//! OPC UA without its socket: the binary encoding (part 6 of the specification, 5.2) and secure channels without security
//! (part 6, 6.7 and 7.1), as much of them as the discovery handler and the broker need. Bytes of peers are bounded and checked.

mod binary;
mod channel;
mod status;

pub use binary::{Malformed, Reader, Writer};
pub use channel::{Broken, Channel, Event, SECURITY_POLICY_NONE};
pub use status::status;

/// Encoding of a response that says that a request failed.
pub const SERVICE_FAULT: u32 = 397;
