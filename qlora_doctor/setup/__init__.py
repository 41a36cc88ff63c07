"""`qlora-doctor setup`: a new environment with the newest set that fits, proved before it is called finished."""
