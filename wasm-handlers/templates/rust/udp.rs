//! {{name}}: who answers a datagram is a device.

use akri_handler::{Device, Error, Handler, Request, Step, handler, needs, schema_of, time, udp};
use schemars::JsonSchema;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The variable that brokers read.
const DEVICE: &str = "{{VARIABLE}}";
/// What is asked. Yours will be another one.
const QUESTION: &[u8] = b"who is there?";
/// How long answers are waited for, and the time between two questions.
const WINDOW: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(10);

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// Where it is asked, ADDRESS:PORT; a multicast group, for example.
    ask: String,
}

struct {{Type}}(SocketAddr);

impl Handler for {{Type}} {
    const NAME: &'static str = "{{name}}";
    // Whether other nodes see the same devices.
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        schema_of::<Details>()
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let ask = &request.details.ask;
        let address = ask.parse().map_err(|_| Error::InvalidDetails(format!("ask: {ask:?} is not ADDRESS:PORT")))?;
        Ok(Self(address))
    }

    fn step(&mut self) -> Result<Step, Error> {
        let any = if self.0.is_ipv4() { "0.0.0.0" } else { "::" };
        let any = any.parse().map_err(|_| Error::Internal("an address".to_owned()))?;
        let socket = udp::Socket::bind(any)?;
        socket.send(self.0, QUESTION)?;
        let (until, mut found) = (time::now() + WINDOW, BTreeMap::new());
        while let Some((_, datagram)) = udp::receive(&[&socket], until) {
            found.insert(datagram.from.ip().to_string(), datagram.from);
        }
        log::info!("{} devices", found.len());
        let device = |(id, from): (String, SocketAddr)| Device::new(id).property(DEVICE, from.to_string());
        Ok(Step::devices(found.into_iter().map(device).collect()).wake_after(AGAIN))
    }
}

handler!({{Type}});

// What its pod has to give it: akri-krustlet tells whoever runs it without.
needs! {
    // Yours will be another one.
    optional_network: ["udp 239.255.0.1:4000"],
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;
    use akri_handler::udp::Datagram;

    #[test]
    fn who_answers_is_a_device() {
        let world = World::new();
        world.responder(|sent| {
            assert_eq!(sent.payload, QUESTION);
            let from = "192.0.2.7:4000".parse().unwrap();
            vec![(Duration::from_millis(300), Datagram { from, payload: b"me".to_vec() })]
        });
        let mut handler = world.open::<{{Type}}>(r#"{"ask": "239.255.0.1:4000"}"#).unwrap();
        let devices = handler.step().unwrap().devices.unwrap();
        assert_eq!(devices, [Device::new("192.0.2.7").property(DEVICE, "192.0.2.7:4000")]);
        let Err(Error::InvalidDetails(what)) = world.open::<{{Type}}>(r#"{"ask": "nobody"}"#) else { panic!() };
        assert!(what.contains("ADDRESS:PORT"), "{what}");
    }

    /// What `akri-krustlet dev --record tests/NAME.rec` writes down is a test.
    #[test]
    fn what_was_recorded_is_said_again() {
        akri_handler::fake::replay_all::<{{Type}}>("tests");
    }
}
