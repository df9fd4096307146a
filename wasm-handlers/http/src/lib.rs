//! Devices by HTTP: those that a list at a URL names, and those that answer in a range of addresses.
//!
//! # Flow
//! Details ([`details`]) -> [`list::List`], asked again after each interval, or [`range::Range`], asked a part at a time ->
//! devices. Whoever answers is named by a URL in its device's variables.

mod details;
mod list;
mod range;
#[cfg(test)]
mod tests;

use akri_handler::{Error, Handler, Request, Step, handler};
use details::Details;

/// Set in every device, as in the walkthrough of Akri's own documentation.
const MARK: (&str, &str) = ("AKRI_HTTP", "http");
/// Where a device is.
const ENDPOINT: &str = "AKRI_HTTP_DEVICE_ENDPOINT";

enum Http {
    List(list::List),
    Range(range::Range),
}

impl Handler for Http {
    const NAME: &'static str = "http";
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(details::SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        Ok(match request.details {
            Details::Url(url) => Self::List(list::List::lines(url)?),
            Details::List(details) => Self::List(list::List::new(details, &request.properties)?),
            Details::Range(details) => Self::Range(range::Range::new(details, &request.properties)?),
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        match self {
            Self::List(list) => list.step(),
            Self::Range(range) => range.step(),
        }
    }
}

handler!(Http);
akri_handler::needs! {
    network: ["http details"],
}
