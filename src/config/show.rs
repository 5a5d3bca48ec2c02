//! A configuration as text for people: every value with its origin.

use ipnetwork::IpNetwork;

use super::values::FilterName;

/// An address, or a subnet with its prefix length.
pub fn network(net: IpNetwork) -> String {
    let whole = if net.is_ipv4() { 32 } else { 128 };
    if net.prefix() == whole { net.ip().to_string() } else { net.to_string() }
}

/// A filter with its parameters, as fail2ban writes it.
pub fn filter(filter: &FilterName) -> String {
    let params: Vec<String> = filter.params.iter().map(|(key, (values, _))| format!("{key}={}", values.join(" "))).collect();
    if params.is_empty() { filter.name.clone() } else { format!("{}[{}]", filter.name, params.join(", ")) }
}
