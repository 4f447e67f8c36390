//! Outlier windows: an endpoint is judged by its own outcomes, never by its gateway's (DESIGN §4.4).
