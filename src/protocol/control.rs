//! JSON bodies of the HTTP API on the socket: one payload struct a verb.
