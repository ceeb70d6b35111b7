"""From raw text to training batches; everything but `pipeline` is numpy."""
