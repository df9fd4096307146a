//! Which requests by HTTP a guest may make, and to which addresses.

use super::super::rules::{Protocol, Rule, Target};
use super::super::special::{canonical, is_single};
use super::super::urls::{Certificates, UrlPattern};
use super::{CEILING, NO_RULE, NO_RULES, NetworkAccess, SPECIAL, gives};
use std::net::SocketAddr;
use url::Url;

impl NetworkAccess {
    /// What is asked of the server at an address, if a request to a URL that leads there may be made; else why not.
    pub(in super::super) fn may_request(&self, url: &Url, place: SocketAddr) -> Result<Certificates, &'static str> {
        let place = canonical(place);
        if self.grant.rules.0.is_empty() {
            return Err(NO_RULES);
        }
        let special = self.is_special(place);
        let own = self.grant.rules.0.iter();
        // Only the pod's author opens special places, not a Configuration's.
        let of_details = self.details.iter().filter(|_| !special);
        let given: Vec<_> = own.chain(of_details).filter_map(|rule| given(rule, url, place, special)).collect();
        let Some(first) = given.first() else {
            let would = |rule: &Rule| given_at(rule, url, place);
            return Err(if special && self.rules().any(would) { SPECIAL } else { NO_RULE });
        };
        let allowed = self.ceiling().allowed.as_ref();
        if self.is_denied(place) || allowed.is_some_and(|rules| !rules.0.iter().any(|rule| given_at(rule, url, place)))
        {
            return Err(CEILING);
        }
        // The rule that asks least is the one that the author wrote for this server.
        Ok(if given.contains(&Certificates::Any) { Certificates::Any } else { *first })
    }
}

fn given_at(rule: &Rule, url: &Url, place: SocketAddr) -> bool {
    given(rule, url, place, false).is_some()
}

/// What a rule asks of the server, if it gives the request.
fn given(rule: &Rule, url: &Url, place: SocketAddr, is_special: bool) -> Option<Certificates> {
    let leads_there = |target: &Target| match target {
        Target::Net(net) if is_special => is_single(net, place.ip()),
        Target::Net(net) => net.contains(&place.ip()),
        Target::Name(pattern) => !is_special && url.domain().is_some_and(|name| pattern.matches(name)),
    };
    match rule {
        Rule::Http(pattern @ UrlPattern { host, certificates, .. }) => {
            (pattern.covers(url, place.port()) && leads_there(host)).then_some(*certificates)
        }
        // Whoever may connect there may also speak HTTP.
        Rule::Reach { protocol: Protocol::Tcp, target: target @ Target::Name(_), ports } => {
            (ports.contain(place.port()) && leads_there(target)).then_some(Certificates::Valid)
        }
        rule => gives(rule, Protocol::Tcp, place, is_special).then_some(Certificates::Valid),
    }
}
