//! What both programs serve and need as processes.

pub mod admin;
pub mod alive;
pub mod client;
pub mod events;
pub mod leader;
pub mod logs;
mod patient;
pub mod ready;
pub mod serve;
pub mod shutdown;
pub mod tls;
mod watch_backoff;

pub use admin::{build_info, serve_admin};
pub use alive::Alive;
pub use logs::{LogFormat, init_logs};
pub use ready::{Part, Ready};
pub use serve::{Limits, ServeError, bind, serve, serve_with};
pub use shutdown::Shutdown;
pub use tls::{Material, Tls, TlsError};
pub use watch_backoff::WatchBackoff;
