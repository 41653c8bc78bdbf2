//! What both programs serve and need as processes.

pub mod admin;
pub mod events;
pub mod logs;
pub mod ready;
pub mod serve;
pub mod shutdown;

pub use admin::{build_info, serve_admin};
pub use logs::{LogFormat, init_logs};
pub use ready::{Part, Ready};
pub use serve::{Limits, ServeError, bind, serve};
pub use shutdown::Shutdown;
