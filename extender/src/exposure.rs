//! Who may reach the port that kube-scheduler calls. It needs no password: what keeps others off is the loopback interface, or
//! the certificates of clients.

use std::net::SocketAddr;

use thiserror::Error;

/// The port would serve whoever reaches the host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "QUARRY_LISTEN={listen} is reached from other hosts, and no certificate is asked of clients: whoever reaches it could ask \
     for decisions, and count pods that do not exist, so that nodes look full. Listen on 127.0.0.1, as deploy/base has it; or \
     serve TLS and give the authority of kube-scheduler's certificate in QUARRY_TLS_CLIENT_CA_FILE (docs/scheduler.md#tls); \
     or, where the network itself keeps others off, set QUARRY_ALLOW_ANY_CLIENT=true"
)]
pub struct Exposed {
    /// Where it was to listen.
    pub listen: SocketAddr,
}

/// Whether the port may be served: on the loopback interface, with certificates of clients, or because whoever runs it says so.
///
/// # Errors
/// Anybody would be served; says what can be done.
pub fn check(listen: SocketAddr, clients_have_certificates: bool, any_client: bool) -> Result<(), Exposed> {
    // Also where it is written as an IPv6 address.
    let is_loopback = listen.ip().to_canonical().is_loopback();
    if is_loopback || clients_have_certificates {
        return Ok(());
    }
    if any_client {
        tracing::warn!(
            address = %listen,
            "QUARRY_ALLOW_ANY_CLIENT is set: whoever reaches this address is served as if it were kube-scheduler"
        );
        return Ok(());
    }
    Err(Exposed { listen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_from_elsewhere_unless_known_or_allowed() {
        for (listen, clients, any, served) in [
            ("127.0.0.1:9899", false, false, true),
            ("127.3.2.1:9899", false, false, true),
            ("[::1]:9899", false, false, true),
            ("[::ffff:127.0.0.1]:9899", false, false, true),
            ("0.0.0.0:9899", false, false, false),
            ("[::]:9899", false, false, false),
            ("192.168.77.11:9899", false, false, false),
            ("[::ffff:192.168.77.11]:9899", false, false, false),
            ("0.0.0.0:9899", true, false, true),
            ("[::]:9899", false, true, true),
        ] {
            let listen: SocketAddr = listen.parse().expect("an address");
            assert_eq!(check(listen, clients, any).is_ok(), served, "{listen} {clients} {any}");
        }
    }

    #[test]
    fn who_is_refused_learns_what_to_do() {
        let listen = "0.0.0.0:9899".parse().expect("an address");
        let told = check(listen, false, false).expect_err("refused").to_string();
        for part in [
            "QUARRY_LISTEN=0.0.0.0:9899",
            "127.0.0.1",
            "QUARRY_TLS_CLIENT_CA_FILE",
            "QUARRY_ALLOW_ANY_CLIENT=true",
        ] {
            assert!(told.contains(part), "{told:?} lacks {part:?}");
        }
    }
}
