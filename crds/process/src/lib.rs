//! What both programs serve and need as processes.

pub mod events;
