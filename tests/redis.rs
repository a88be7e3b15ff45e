//! What is particular to Redis and Valkey servers. What they share with other stores stands with the topic.

mod access;
mod cost;
mod oracle;
mod refusals;
