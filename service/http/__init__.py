"""HTTP mechanics that know no task."""
