//! What is particular to PostgreSQL. What it shares with other stores stands with the topic.

mod oracle;
