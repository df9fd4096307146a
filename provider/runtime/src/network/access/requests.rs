//! Which requests by HTTP a guest may make, and to which addresses.

use super::super::rules::{Protocol, Rule, Target};
use super::super::special::{canonical, is_single};
use super::super::urls::{Certificates, UrlPattern};
use super::{CEILING, NO_RULE, NO_RULES, NetworkAccess, SPECIAL};
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
        let given =
            |rules: &[Rule]| rules.iter().filter_map(|rule| given(rule, url, place, special)).collect::<Vec<_>>();
        // Only the pod's author opens special places, not a Configuration's.
        let (own, of_details) = (given(&self.grant.rules.0), if special { Vec::new() } else { given(&self.details) });
        // What the pod's author says of a name counts before what is said of a network, and that before what details give.
        let by_name: Vec<_> = own.iter().filter(|given| given.by_name).copied().collect();
        let first = [by_name, own, of_details].into_iter().find(|given| !given.is_empty());
        let Some(first) = first else {
            let would = |rule: &Rule| given_at(rule, url, place);
            return Err(if special && self.rules().any(would) { SPECIAL } else { NO_RULE });
        };
        let takes_any = |given: &[Given]| given.iter().any(|given| given.certificates == Certificates::Any);
        let mut any = takes_any(&first);
        if let Some(allowed) = &self.ceiling().allowed {
            let allowed: Vec<_> = allowed.0.iter().filter_map(|rule| self::given(rule, url, place, false)).collect();
            if allowed.is_empty() {
                return Err(CEILING);
            }
            any &= takes_any(&allowed);
        }
        match self.is_denied(place) {
            true => Err(CEILING),
            false if any => Ok(Certificates::Any),
            false => Ok(Certificates::Valid),
        }
    }
}

/// What a rule says of a request that it gives.
#[derive(Clone, Copy)]
struct Given {
    certificates: Certificates,
    /// By the name in its URL, and not by the address that this leads to.
    by_name: bool,
}

fn given_at(rule: &Rule, url: &Url, place: SocketAddr) -> bool {
    given(rule, url, place, false).is_some()
}

/// What a rule says of a request, if it gives that.
fn given(rule: &Rule, url: &Url, place: SocketAddr, is_special: bool) -> Option<Given> {
    let leads_there = |target: &Target| match target {
        Target::Net(net) if is_special => is_single(net, place.ip()),
        Target::Net(net) => net.contains(&place.ip()),
        Target::Name(pattern) => !is_special && url.domain().is_some_and(|name| pattern.matches(name)),
    };
    let (target, certificates) = match rule {
        Rule::Http(pattern @ UrlPattern { host, certificates, .. }) if pattern.covers(url, place.port()) => {
            (host, *certificates)
        }
        // Whoever may connect there may also speak HTTP.
        Rule::Reach { protocol: Protocol::Tcp, target, ports } if ports.contain(place.port()) => {
            (target, Certificates::Valid)
        }
        _ => return None,
    };
    leads_there(target).then_some(Given { certificates, by_name: matches!(target, Target::Name(_)) })
}
