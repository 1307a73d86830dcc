//! Addresses and ports.

use std::net::IpAddr;

use ipnet::IpNet;
use underpass_config::{Interner, Vip};

use super::Invalid;
use super::wire::NetworkAddress;

/// An address as its 4 or 16 bytes.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Invalid::Address {
        field,
        length: bytes.len(),
    })?;
    Ok(v6.into())
}

/// A range of addresses.
pub(super) fn net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, Invalid> {
    let address = ip(field, bytes)?;
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or(Invalid::PrefixLength { field, length })
}

/// A single address on a network.
pub(super) fn vip(field: &'static str, address: &NetworkAddress, names: &mut Interner) -> Result<Vip, Invalid> {
    let ip = ip(field, &address.address)?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    match address.length {
        None => {}
        Some(length) if length == whole => {}
        Some(length) => return Err(Invalid::AddressRange { field, length }),
    }
    Ok(Vip {
        network: names.intern(&address.network),
        address: ip,
    })
}

/// A port; 0 is allowed where it means "none".
pub(super) fn port_or_zero(field: &'static str, value: u32) -> Result<u16, Invalid> {
    u16::try_from(value).map_err(|_| Invalid::Port { field, value })
}

/// A port that can be connected to.
pub(super) fn port(field: &'static str, value: u32) -> Result<u16, Invalid> {
    match port_or_zero(field, value)? {
        0 => Err(Invalid::Port { field, value }),
        port => Ok(port),
    }
}
