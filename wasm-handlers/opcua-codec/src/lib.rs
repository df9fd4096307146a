//! OPC UA without its socket: URLs, the binary encoding (part 6 of the specification, 5.2) and secure channels without security
//! (part 6, 6.7 and 7.1), as much of them as the discovery handler and the broker need. Bytes of peers are bounded and checked.

mod binary;
mod channel;
mod response;
mod status;
mod url;

pub use binary::{Malformed, Reader, Writer};
pub use channel::{Broken, Channel, Event, SECURITY_POLICY_NONE};
pub use response::{Description, response};
pub use status::{is_bad, status};
pub use url::{Place, SCHEME, place};
